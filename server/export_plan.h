// SPDX-License-Identifier: Apache-2.0
// export_plan.h: the exports that the command line asks for, before any of their images is opened.
#ifndef LAZYCOW_SERVER_EXPORT_PLAN_H
#define LAZYCOW_SERVER_EXPORT_PLAN_H

#include <stddef.h>

#include "qcow2/base/error.h"
#include "server/export.h"
#include "server/export_argument.h"

struct export_plan {
    const struct export_argument *argument; // borrowed
    char *name;
    const char *path; // points into the argument
    struct export_options options;
};

struct export_plans {
    struct export_plan *list;
    size_t count;
};

// Finds the names and paths, in order; each plan gets a copy of the options. The arguments are
// borrowed. Returns 0, or a negative errno with a message; nothing is to be freed then.
int export_plans_make(struct export_plans *plans, const struct export_options *options,
                      const struct export_argument *arguments, size_t count, struct error *err);
void export_plans_free(struct export_plans *plans);

// Returns the plan whose name, with a colon behind it, begins the text; the longest such name.
// NULL: none.
struct export_plan *export_plans_named(const struct export_plans *plans, const char *text);

// Checks that the options of each plan go together. Returns 0, or a negative errno with a message.
int export_plans_check(const struct export_plans *plans, struct error *err);

#endif
