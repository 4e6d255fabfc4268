// SPDX-License-Identifier: Apache-2.0
#include "server/access.h"

#include <assert.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

// The export with the longest name that, with a colon behind it, begins the argument; or NULL.
static struct export *named_export(const struct exports *exports, const char *argument)
{
    struct export *found = NULL;
    size_t longest = 0;

    for (size_t i = 0; i < exports->count; i++) {
        size_t length = strlen(exports->list[i].name);

        if (strncmp(argument, exports->list[i].name, length) == 0 && argument[length] == ':' &&
            (found == NULL || length > longest)) {
            found = &exports->list[i];
            longest = length;
        }
    }
    return found;
}

// As named_export, for an image that was left out (--skip-broken). Its rules have no effect.
static bool names_skipped(const struct exports *exports, const char *argument)
{
    for (size_t i = 0; i < exports->skipped_count; i++) {
        size_t length = strlen(exports->skipped[i].name);

        if (strncmp(argument, exports->skipped[i].name, length) == 0 && argument[length] == ':') {
            return true;
        }
    }
    return false;
}

static int parse_rule(const struct exports *exports, const char *argument, struct access_rule *rule,
                      struct error *err)
{
    const char *colon = strchr(argument, ':');

    rule->export = named_export(exports, argument);
    rule->pattern = argument;
    if (rule->export == NULL && names_skipped(exports, argument)) {
        rule->skipped = true;
    } else if (rule->export != NULL) {
        rule->pattern = argument + strlen(rule->export->name) + 1;
    } else if (colon != NULL && strcspn(argument, "=*?[") > (size_t)(colon - argument)) {
        // Neither a part of a distinguished name nor a pattern for one, so it is a mistyped export
        // name.
        return error_set(err, EINVAL, "--tls-allow '%s': there is no export '%.*s'", argument,
                         (int)(colon - argument), argument);
    }
    if (rule->pattern[0] == '\0') {
        return error_set(err, EINVAL, "--tls-allow '%s': the pattern is empty; * is for everyone",
                         argument);
    }
    return 0;
}

// A rule for the export of exactly this name, which may be an image that was left out.
static void bind_rule(const struct exports *exports, const char *name, struct access_rule *rule)
{
    rule->skipped = true;
    for (size_t i = 0; i < exports->count; i++) {
        if (strcmp(exports->list[i].name, name) == 0) {
            rule->export = &exports->list[i];
            rule->skipped = false;
        }
    }
}

int access_add(struct access *access, const char *name, const char *argument, struct error *err)
{
    struct access_rule rule = {.pattern = argument};
    struct access_rule *rules;

    if (name != NULL && argument[0] != '\0') {
        bind_rule(access->exports, name, &rule);
    } else {
        int result = parse_rule(access->exports, argument, &rule, err);

        if (result < 0) {
            return result;
        }
    }
    rules = realloc(access->rules, (access->count + 1) * sizeof(*rules));
    if (rules == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    access->rules = rules;
    access->rules[access->count++] = rule;
    return 0;
}

int access_init(struct access *access, struct exports *exports, const char *const *arguments,
                size_t count, struct error *err)
{
    *access = (struct access){.exports = exports};
    for (size_t i = 0; i < count; i++) {
        int result = access_add(access, NULL, arguments[i], err);

        if (result < 0) {
            access_destroy(access);
            return result;
        }
    }
    return 0;
}

void access_destroy(struct access *access)
{
    free(access->rules);
    access->rules = NULL;
    access->count = 0;
}

static bool may_use(const struct access *access, const struct export *export, const char *identity)
{
    bool ruled = false;

    for (size_t i = 0; i < access->count; i++) {
        const struct access_rule *rule = &access->rules[i];

        if (!rule->skipped && (rule->export == NULL || rule->export == export)) {
            ruled = true;
            if (identity != NULL && fnmatch(rule->pattern, identity, 0) == 0) {
                return true;
            }
        }
    }
    return !ruled;
}

static size_t visible_count(void *context)
{
    const struct access_view *view = context;

    return view->visible != NULL ? view->count : view->access->exports->count;
}

static const struct session_export *visible_at(void *context, size_t index)
{
    const struct access_view *view = context;

    assert(index < visible_count(context));
    return view->visible != NULL ? &view->visible[index]->session
                                 : &view->access->exports->list[index].session;
}

// Returns why an export is unknown, or NULL. With access rules a reply must not tell which images
// exist or are missing.
static const char *why_unknown(void *context, const uint8_t *name, size_t length)
{
    const struct access_view *view = context;
    const struct skipped_export *skipped = NULL;

    if (view->access->count == 0) {
        skipped = exports_skipped(view->access->exports, name, length);
    }
    return skipped != NULL ? skipped->reason : NULL;
}

static const char *access_why_refused(void *context, const struct session_export *chosen)
{
    const struct access_view *view = context;

    return export_full(exports_chosen(view->access->exports, chosen))
               ? "this export has as many connections as it may have (max-connections)"
               : NULL;
}

int access_view_init(struct access_view *view, const struct access *access, enum session_tls tls)
{
    *view = (struct access_view){
        .host =
            {
                .context = view,
                .export_count = visible_count,
                .export_at = visible_at,
                .why_unknown = why_unknown,
                .why_refused = access_why_refused,
                .empty_name_hidden = access->exports->first_skipped,
                .tls = tls,
            },
        .access = access,
    };
    return access_view_identify(view, NULL);
}

int access_view_identify(struct access_view *view, const char *identity)
{
    struct exports *exports = view->access->exports;

    if (view->access->count == 0) {
        return 0;
    }
    if (view->visible == NULL) {
        view->visible = calloc(exports->count, sizeof(struct export *));
        if (view->visible == NULL) {
            return -ENOMEM;
        }
    }
    view->count = 0;
    view->host.empty_name_hidden = exports->first_skipped;
    for (size_t i = 0; i < exports->count; i++) {
        if (may_use(view->access, &exports->list[i], identity)) {
            view->visible[view->count++] = &exports->list[i];
        } else if (exports->list[i].name[0] == '\0') {
            view->host.empty_name_hidden = true;
        }
    }
    return 0;
}

void access_view_destroy(struct access_view *view)
{
    free(view->visible);
    view->visible = NULL;
}
