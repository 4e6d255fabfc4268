// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/inflight.h"

#include <assert.h>

#include "qcow2/base/op.h"

void inflight_init(struct inflight *inflight)
{
    TAILQ_INIT(&inflight->ranges);
}

int inflight_wait(struct inflight *inflight, uint64_t first, uint64_t end, struct op *op)
{
    struct inflight_range *other;

    TAILQ_FOREACH (other, &inflight->ranges, link) {
        if (other->first < end && first < other->end)
            return op_park(op, &other->waiters);
    }
    return 0;
}

void inflight_lock(struct inflight *inflight, struct inflight_range *range, uint64_t first,
                   uint64_t end)
{
    assert(range->end == 0 && first < end);
    range->first = first;
    range->end = end;
    TAILQ_INSERT_TAIL(&inflight->ranges, range, link);
}

void inflight_unlock(struct inflight *inflight, struct inflight_range *range)
{
    if (range->end == 0)
        return;
    TAILQ_REMOVE(&inflight->ranges, range, link);
    range->end = 0;
    waitq_wake(&range->waiters, 0);
}
