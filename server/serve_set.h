// SPDX-License-Identifier: Apache-2.0
// serve_set.h: settings of single exports, --set NAME:KEY=VALUE.
#ifndef LAZYCOW_SERVER_SERVE_SET_H
#define LAZYCOW_SERVER_SERVE_SET_H

#include "server/export_plan.h"
#include "server/serve_options.h"

// Applies each --set to its plan, in order; a later one overrides an earlier one. Access rules of
// TLS are added to the options, with names that the plans own. Returns 0, or a negative errno with
// a message.
int serve_set_apply(struct serve_options *options, const struct export_plans *plans,
                    struct error *err);

#endif
