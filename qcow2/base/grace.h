// SPDX-License-Identifier: Apache-2.0
// grace.h: the grace period of host clusters. A cluster that was given up may still be in use by
//   - plans: ops that looked it up before, and act on it in a later turn, and
//   - holders: what goes on using bytes that such a plan saw, after its op is done.
// Both are members of epochs (epoch.h). A holder has the epoch of the plan that it comes from. The
// grace period of a stamp is over when plans and holders of all earlier epochs have left.
//
// Plans leave by themselves. Holders wait for a client, perhaps for long: they are asked to leave.
#ifndef LAZYCOW_QCOW2_BASE_GRACE_H
#define LAZYCOW_QCOW2_BASE_GRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/epoch.h"

struct op;

struct grace {
    struct epochs plans;
    struct epochs holders;
    // Asks the owners of holders to let them leave soon, but not from inside this call, which may come
    // often. May be NULL where no holder ever enters.
    void (*settle)(void *context);
    void *context;
};

// settle and context are those of struct grace.
void grace_init(struct grace *grace, void (*settle)(void *context), void *context);

// The stamp of what is given up now.
uint64_t grace_stamp(const struct grace *grace);

// True when nothing but holders is in the way of its end.
bool grace_held(const struct grace *grace, uint64_t stamp);

// Each returns 0, or OP_PARKED: then the op asks again in its next turn.
//
// Waits for the end of the grace period; asks holders to leave.
int grace_wait(struct op *op, struct grace *grace, uint64_t stamp);
// Waits for older plans alone.
int grace_wait_plans(struct op *op, struct grace *grace, uint64_t stamp);

#endif
