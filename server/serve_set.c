// SPDX-License-Identifier: Apache-2.0
#include "server/serve_set.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "server/serve_settings.h"

// Most bytes of the command line that a message repeats, so that it has room for the reason.
#define TEXT_SHOWN 200

// Settings whose option has another meaning for the server as a whole.
static bool serve_set_max_connections(struct serve_options *o, const char *value)
{
    unsigned long n;

    if (!number(value, 1, SERVE_CONNECTIONS_LIMIT, &n)) {
        return false;
    }
    o->exports.connections_max = (unsigned)n;
    return true;
}

static const struct serve_setting own_settings[] = {
    {.name = "max-connections", .set = serve_set_max_connections, .allowed = "1 to 16384"},
    {0},
};

// Options that may also be given for a single export.
static const char *const option_names[] = {
    "read-only",     "description",    "tls-allow",   "cache",       "discard",
    "detect-zeroes", "lazy-refcounts", "cache-size",  "clean-after", "format",
    "locking",       "backing-format", "force-share", NULL};

// Returns the values of a setting, for a message. A setting may need a value where the option takes
// none.
static const char *allowed(const struct serve_setting *setting)
{
    return setting->allowed != NULL ? setting->allowed : "on or off";
}

static const struct serve_setting *option_of(const char *name)
{
    const struct serve_setting *setting = serve_settings;

    while (strcmp(setting->name, name) != 0) {
        setting++;
        assert(setting->name != NULL);
    }
    return setting;
}

// Returns the setting of this name; NULL: there is none for single exports.
static const struct serve_setting *serve_set_find(const char *key, size_t length)
{
    for (const struct serve_setting *own = own_settings; own->name != NULL; own++) {
        if (strlen(own->name) == length && memcmp(own->name, key, length) == 0) {
            return own;
        }
    }
    for (const char *const *name = option_names; *name != NULL; name++) {
        if (strlen(*name) == length && memcmp(*name, key, length) == 0) {
            return option_of(*name);
        }
    }
    return NULL;
}

// The message names every setting.
static int unknown_key(const char *text, const char *key, size_t length, struct error *err)
{
    error_set(err, EINVAL, "--set '%.*s': there is no '%.*s' for a single export; there are %s",
              TEXT_SHOWN, text, length < TEXT_SHOWN ? (int)length : TEXT_SHOWN, key,
              own_settings[0].name);
    for (const char *const *name = option_names; *name != NULL; name++) {
        error_append(err, ", %s", *name);
    }
    return -EINVAL;
}

static int serve_set_unknown_name(const struct export_plans *plans, const char *text,
                                  struct error *err)
{
    const char *end = strchr(text, ':');

    // The name is taken to end before the last known key.
    for (const char *p = end; p != NULL; p = strchr(p + 1, ':')) {
        if (serve_set_find(p + 1, strcspn(p + 1, "=")) != NULL) {
            end = p;
        }
    }
    if (end == NULL) {
        return error_set(err, EINVAL, "--set '%.*s': write NAME:KEY=VALUE, NAME being an export's",
                         TEXT_SHOWN, text);
    }
    return error_set(err, EINVAL, "--set '%.*s': there is no export '%.*s'; %s '%.*s'", TEXT_SHOWN,
                     text, end - text < TEXT_SHOWN ? (int)(end - text) : TEXT_SHOWN, text,
                     plans->count == 1 ? "there is" : "the first is", TEXT_SHOWN,
                     plans->list[0].name);
}

static int apply(struct serve_options *options, const struct export_plans *plans, const char *text,
                 struct error *err)
{
    struct export_plan *plan = export_plans_named(plans, text);
    struct export_options before = options->exports;
    size_t rules = options->tls_allow_count;
    const struct serve_setting *setting;
    const char *key;
    size_t length;
    bool good;

    if (plan == NULL) {
        return serve_set_unknown_name(plans, text, err);
    }
    key = text + strlen(plan->name) + 1;
    length = strcspn(key, "=");
    setting = serve_set_find(key, length);
    if (setting == NULL) {
        return unknown_key(text, key, length, err);
    }
    if (key[length] == '\0') {
        return error_set(err, EINVAL,
                         "--set '%.*s': has no value; write =VALUE behind it, which is %s",
                         TEXT_SHOWN, text, allowed(setting));
    }
    // The setters work on the options of all exports, so this export's options take their place
    // meanwhile.
    options->exports = plan->options;
    good = setting->set(options, key + length + 1);
    plan->options = options->exports;
    options->exports = before;
    if (!good) {
        return error_set(err, EINVAL, "--set '%.*s': '%.*s' is not %s", TEXT_SHOWN, text,
                         TEXT_SHOWN, key + length + 1, allowed(setting));
    }
    for (; rules < options->tls_allow_count; rules++) {
        options->tls_allow[rules].name = plan->name;
    }
    return 0;
}

int serve_set_apply(struct serve_options *options, const struct export_plans *plans,
                    struct error *err)
{
    int result = 0;

    for (size_t i = 0; result == 0 && i < options->set_count; i++) {
        result = apply(options, plans, options->sets[i], err);
    }
    return result;
}
