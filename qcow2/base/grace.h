// SPDX-License-Identifier: Apache-2.0
// grace.h: the grace period of host clusters. A cluster that was given up may still be in use by
//   - plans: ops that have looked it up before and act on it in a later turn, and
//   - holders: users of bytes that such a plan saw, after its op is done.
// Both are members of epochs (epoch.h). A holder has the epoch of the plan that it comes from. The
// grace period of a stamp is over when plans and holders of all earlier epochs have left.
//
// Plans leave by themselves. A holder waits for a client, perhaps for long, so its owner is asked
// to let it leave.
#ifndef LAZYCOW_QCOW2_BASE_GRACE_H
#define LAZYCOW_QCOW2_BASE_GRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/epoch.h"

struct op;

struct grace {
    struct epochs plans;
    struct epochs holders;
    // Asks the owners of holders to let them leave soon, but not from inside this call, which may
    // come often. May be NULL where no holder ever enters.
    void (*settle)(void *context);
    void *context;
};

// settle and context are stored in struct grace.
void grace_init(struct grace *grace, void (*settle)(void *context), void *context);

// Returns the stamp of a cluster that is given up now.
uint64_t grace_stamp(const struct grace *grace);

// Returns true when the stamp's grace period is over.
bool grace_over(const struct grace *grace, uint64_t stamp);
// Returns true when only holders delay the end of the stamp's grace period.
bool grace_held(const struct grace *grace, uint64_t stamp);

// Waits for the end of the grace period, and asks holders to leave. Returns 0, or OP_PARKED: the op
// asks again in its next turn.
int grace_wait(struct op *op, struct grace *grace, uint64_t stamp);
// Waits for plans of earlier epochs only. Returns as grace_wait.
int grace_wait_plans(struct op *op, struct grace *grace, uint64_t stamp);

#endif
