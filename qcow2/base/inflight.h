// SPDX-License-Identifier: Apache-2.0
// inflight.h: guest clusters whose mapping is being changed. Whoever wants to change one of them
// too waits. Reads and writes in place take no part: they follow the mapping as it is.
#ifndef LAZYCOW_QCOW2_MAPPING_INFLIGHT_H
#define LAZYCOW_QCOW2_MAPPING_INFLIGHT_H

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
// Returns 0, or OP_PARKED until a range that overlaps [first, end) is unlocked (plan again).
int inflight_wait(struct inflight *inflight, uint64_t first, uint64_t end, struct op *op);
// Locks [first, end); inflight_wait has just returned 0 for it.
void inflight_lock(struct inflight *inflight, struct inflight_range *range, uint64_t first,
                   uint64_t end);
// Wakes who waits for it. Nothing happens where it is not locked.
void inflight_unlock(struct inflight *inflight, struct inflight_range *range);

#endif
