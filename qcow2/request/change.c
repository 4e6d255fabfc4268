// SPDX-License-Identifier: Apache-2.0
#include "qcow2/request/change.h"

#include <errno.h>

#include "qcow2/engine.h"

int change_prepare(struct op *op)
{
    struct image *image = op->image;

    if (image->latched_error < 0)
        return image->latched_error;
    if (!image->guard.ready) {
        int result = guard_init(image);

        if (result < 0)
            return result;
    }
    if (image->header.autoclear != 0 || image->sync.drop_autoclear) {
        image->sync.drop_autoclear = true;
        return sync_wait(op);
    }
    return 0;
}

int change_mapping(struct op *op)
{
    struct image *image = op->image;
    int result = recover_wait(op);

    if (result != 0 || !quarantine_full(&image->quarantine))
        return result;
    sync_request(image);
    return waitq_park(&image->quarantine.room, op);
}

int change_link(struct op *op, uint64_t first, uint64_t count)
{
    struct image *image = op->image;
    struct op_work *work = op->work;
    unsigned bits = image->geometry.cluster_bits;
    struct slice *slice;
    unsigned index;
    int result = map_slice_for_change(op, op->pos, &slice, &index);

    if (result != 0)
        return result;
    image->sync.unsynced = true;
    image->sync.barrier_needed |= work->needs_barrier;
    for (uint64_t i = 0; i < count; i++)
        map_replace(image, slice, index + (unsigned)i, entry_data((first + i) << bits));
    work->run.count = 0;
    inflight_unlock(&image->inflight, &work->range);
    return 0;
}

bool change_hits_metadata(struct image *image, uint64_t host_offset, uint64_t length)
{
    const char *what = image->guard.ready ? guard_hit(image, host_offset, length) : NULL;

    if (what)
        corrupt_found(image, "a write to host offset %llu would have overwritten %s",
                      (unsigned long long)host_offset, what);
    return what != NULL;
}
