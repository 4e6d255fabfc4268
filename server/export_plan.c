// SPDX-License-Identifier: Apache-2.0
#include "server/export_plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool name_taken(const struct export_plans *plans, const char *name)
{
    for (size_t i = 0; i < plans->count; i++) {
        if (strcmp(plans->list[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

static int add_plan(struct export_plans *plans, const struct export_options *options,
                    const struct export_argument *argument, struct error *err)
{
    struct export_plan *plan = &plans->list[plans->count];
    int result;

    *plan = (struct export_plan){.argument = argument, .options = *options};
    result = export_argument_split(argument, options->default_name, &plan->name, &plan->path, err);
    if (result == 0 && name_taken(plans, plan->name)) {
        result = error_set(err, EINVAL,
                           "'%s': there is an export '%s' already; give another name with "
                           "NAME=IMAGE or --export NAME=IMAGE",
                           plan->path, plan->name);
    }
    if (result < 0) {
        free(plan->name);
        return result;
    }
    plans->count++;
    return 0;
}

int export_plans_make(struct export_plans *plans, const struct export_options *options,
                      const struct export_argument *arguments, size_t count, struct error *err)
{
    *plans = (struct export_plans){.list = calloc(count, sizeof(*plans->list))};
    if (plans->list == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        int result = add_plan(plans, options, &arguments[i], err);

        if (result < 0) {
            export_plans_free(plans);
            return result;
        }
    }
    return 0;
}

void export_plans_free(struct export_plans *plans)
{
    for (size_t i = 0; i < plans->count; i++) {
        free(plans->list[i].name);
    }
    free(plans->list);
    *plans = (struct export_plans){0};
}

struct export_plan *export_plans_named(const struct export_plans *plans, const char *text)
{
    struct export_plan *found = NULL;
    size_t longest = 0;

    for (size_t i = 0; i < plans->count; i++) {
        size_t length = strlen(plans->list[i].name);

        if (strncmp(text, plans->list[i].name, length) == 0 && text[length] == ':' &&
            (found == NULL || length > longest)) {
            found = &plans->list[i];
            longest = length;
        }
    }
    return found;
}

int export_plans_check(const struct export_plans *plans, struct error *err)
{
    for (size_t i = 0; i < plans->count; i++) {
        const struct export_options *options = &plans->list[i].options;

        if (options->force_share && !options->read_only) {
            return error_set(err, EINVAL,
                             "export '%s': --force-share is for --read-only; give both or neither",
                             plans->list[i].name);
        }
        if (options->detect_zeroes == DETECT_ZEROES_UNMAP && !options->unmap) {
            return error_set(err, EINVAL,
                             "export '%s': --detect-zeroes=unmap needs --discard=unmap",
                             plans->list[i].name);
        }
    }
    return 0;
}
