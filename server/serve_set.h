// SPDX-License-Identifier: Apache-2.0
// serve_set.h: settings of single exports, --set NAME:KEY=VALUE.
#ifndef LAZYCOW_SERVER_SERVE_SET_H
#define LAZYCOW_SERVER_SERVE_SET_H

#include "server/export_plan.h"
#include "server/serve_options.h"

// Gives the plans what each --set says, in order; a later one goes before an earlier one. Rules of
// TLS are added to the options; their names are the plans'. Returns 0, or a negative errno with a
// message.
int serve_set_apply(struct serve_options *options, const struct export_plans *plans,
                    struct error *err);

#endif
