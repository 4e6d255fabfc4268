// SPDX-License-Identifier: Apache-2.0
#include "qcow2/request/change.h"

#include <errno.h>

#include "qcow2/engine.h"
#include "qcow2/mapping/map.h"

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

int change_link(struct op *op, uint64_t first, uint64_t count, enum entry_kind kind)
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
    for (uint64_t i = 0; i < count; i++) {
        uint64_t host = (first + i) << bits;

        map_replace(image, slice, index + (unsigned)i,
                    kind == ENTRY_DATA ? entry_data(host) : entry_zero_allocated(host));
    }
    work->run.count = 0;
    inflight_unlock(&image->inflight, &work->range);
    return 0;
}

bool change_contradicted(const struct image *image, const struct mapping *m)
{
    uint64_t first = m->host_offset >> image->geometry.cluster_bits;
    uint64_t last = (m->host_offset + m->length - 1) >> image->geometry.cluster_bits;

    // While they are being counted they say nothing yet.
    if (!recover_done(image))
        return false;
    for (uint64_t cluster = first; cluster <= last; cluster++) {
        if (!refcounts_may_be_one(&image->refcounts, cluster))
            return true;
    }
    return false;
}

bool change_hits_metadata(struct image *image, uint64_t host_offset, uint64_t length)
{
    const char *what = image->guard.ready ? guard_hit(image, host_offset, length) : NULL;

    if (what)
        corrupt_found(image, "a write to host offset %llu would have overwritten %s",
                      (unsigned long long)host_offset, what);
    return what != NULL;
}
