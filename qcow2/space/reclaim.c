// SPDX-License-Identifier: Apache-2.0
#include "qcow2/space/reclaim.h"

#include <errno.h>

#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/quarantine.h"

int reclaim_wait(struct op *op)
{
    struct image *image = op->image;

    if (op->space_waits == RECLAIM_WAITS ||
        (quarantine_empty(image->quarantine) && punch_idle(image->punch)))
        return -ENOSPC;
    punch_all(image);
    if (quarantine_wait_release(op) == OP_PARKED)
        return OP_PARKED;
    if (quarantine_held(image))
        return op_park(op, &image->grace.holders.oldest_left);
    op->space_waits++;
    return sync_wait(op);
}
