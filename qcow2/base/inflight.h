// SPDX-License-Identifier: Apache-2.0
// inflight.h: locks on guest clusters whose mapping is being changed. An op that wants to change
// the mapping of a locked cluster waits. Reads and writes in place take no lock: they follow the
// mapping as it is.
#ifndef LAZYCOW_QCOW2_BASE_INFLIGHT_H
#define LAZYCOW_QCOW2_BASE_INFLIGHT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/waitq.h"

struct op;

struct inflight_range {
    uint64_t first; // guest clusters [first, end)
    uint64_t end;   // 0: not locked
    struct waitq waiters;
    TAILQ_ENTRY(inflight_range) link;
};

struct inflight {
    TAILQ_HEAD(, inflight_range) ranges;
};

void inflight_init(struct inflight *inflight);
// Returns 0 when [first, end) is not locked. Else parks the op until a range that overlaps it is
// unlocked, and returns OP_PARKED (plan again).
int inflight_wait(struct inflight *inflight, uint64_t first, uint64_t end, struct op *op);
// Locks [first, end). In this turn inflight_wait has returned 0 for the range.
void inflight_lock(struct inflight *inflight, struct inflight_range *range, uint64_t first,
                   uint64_t end);
// Unlocks the range and wakes the ops that wait for it. Does nothing when the range is not locked.
void inflight_unlock(struct inflight *inflight, struct inflight_range *range);

#endif
