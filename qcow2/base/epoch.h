// SPDX-License-Identifier: Apache-2.0
// epoch.h: when something that was given up is used by nobody any more.
//
// A plan looks at shared state (which host cluster holds what) and acts on it later, in another
// turn. It enters an epoch when it is made, and leaves when it is done or holds nothing of what it
// saw. Epochs are numbered in order, so something given up now, at stamp epoch_now(), can only be
// in use by members whose epoch is lower. The time until all of them have left is the grace period:
//
//   outside ──epoch_enter──> inside, epoch N ──epoch_enter──> inside, a later epoch
//      ^                        │
//      └──────epoch_leave───────┘
//
// Members are kept in the order of their epochs, so the first one tells what has passed.
#ifndef LAZYCOW_QCOW2_BASE_EPOCH_H
#define LAZYCOW_QCOW2_BASE_EPOCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/waitq.h"

struct epochs;

// Embedded in its owner; zero it before use.
struct epoch_member {
    struct epochs *inside; // NULL: outside
    uint64_t epoch;        // the one entered last, also after it was left
    TAILQ_ENTRY(epoch_member) link;
};

struct epochs {
    TAILQ_HEAD(epoch_list, epoch_member) members;
    uint64_t next;
    struct waitq oldest_left; // woken with 0 when the member that was the oldest one has left
};

// event names the wait for oldest_left (waitq.h).
void epochs_init(struct epochs *epochs, const char *event);

// The stamp of what is given up now: members that enter from now on do not see it.
uint64_t epoch_now(const struct epochs *epochs);

// Enters a new epoch; a member that is inside leaves its old one.
void epoch_enter(struct epochs *epochs, struct epoch_member *member);

// Enters, from outside, an epoch that began earlier: the member goes on using what another one saw.
void epoch_enter_at(struct epochs *epochs, struct epoch_member *member, uint64_t epoch);

// Nothing happens where the member is outside.
void epoch_leave(struct epoch_member *member);

// True when every member that entered before the stamp has left. Until then wait for oldest_left,
// and ask again.
bool epoch_passed(const struct epochs *epochs, uint64_t stamp);

#endif
