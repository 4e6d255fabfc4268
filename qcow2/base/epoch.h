// SPDX-License-Identifier: Apache-2.0
// epoch.h: tells when every member that entered before a given moment has left.
//
// A plan looks at shared state (which host cluster holds what) and acts on it in a later turn. A
// plan enters an epoch when it is made. It leaves the epoch when it ends, or when it holds nothing
// of what it saw. Epochs are numbered in order, so a thing that is given up at stamp epoch_now()
// can only be in use by members of lower epochs. The time until all of these members have left is
// the grace period:
//
//   outside ──epoch_enter──> inside, epoch N ──epoch_enter──> inside, a later epoch
//      ^                        │
//      └──────epoch_leave───────┘
//
// Members are kept in the order of their epochs, so the first one tells which stamps have passed.
#ifndef LAZYCOW_QCOW2_BASE_EPOCH_H
#define LAZYCOW_QCOW2_BASE_EPOCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/waitq.h"

struct epochs;

// Embedded in its owner; zero it before use.
struct epoch_member {
    // NULL: outside.
    struct epochs *inside;
    // The epoch entered last, also after the member left it.
    uint64_t epoch;
    TAILQ_ENTRY(epoch_member) link;
};

struct epochs {
    TAILQ_HEAD(epoch_list, epoch_member) members;
    uint64_t next;
    // Woken with 0 when the oldest member has left.
    struct waitq oldest_left;
};

// event names the wait for oldest_left in a dump (waitq.h).
void epochs_init(struct epochs *epochs, const char *event);

// Returns the stamp of a thing that is given up now. Members that enter from now on do not see it.
uint64_t epoch_now(const struct epochs *epochs);

// Enters a new epoch. A member that is inside leaves its old epoch first.
void epoch_enter(struct epochs *epochs, struct epoch_member *member);

// Enters an epoch that began earlier: the member goes on with what another member saw. The member
// is outside before.
void epoch_enter_at(struct epochs *epochs, struct epoch_member *member, uint64_t epoch);

// Leaves the epoch. Does nothing when the member is outside.
void epoch_leave(struct epoch_member *member);

// Returns true when every member that entered before the stamp has left. A caller that gets false
// waits in oldest_left and asks again.
bool epoch_passed(const struct epochs *epochs, uint64_t stamp);

#endif
