// SPDX-License-Identifier: Apache-2.0
#include "qcow2/request/change.h"

#include <errno.h>

#include "qcow2/base/inflight.h"
#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/recover.h"
#include "qcow2/durable/sync.h"
#include "qcow2/format/entry.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/mapping/map.h"
#include "qcow2/request/request.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"

int change_prepare(struct op *op)
{
    struct image *image = op->image;

    if (image->latched_error < 0)
        return image->latched_error;
    int result = guard_wait(op);
    return result != 0 ? result : sync_drop_autoclear(op);
}

int change_mapping(struct op *op)
{
    struct image *image = op->image;
    int result = recover_wait(op);

    if (result != 0 || !quarantine_full(image->quarantine))
        return result;
    sync_request(image);
    return op_park(op, &image->quarantine->room);
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
    sync_note_write(image);
    if (work->needs_barrier)
        sync_need_barrier(image);
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

    // While recovery counts, the refcounts tell nothing yet.
    if (!recover_done(image))
        return false;
    for (uint64_t cluster = first; cluster <= last; cluster++) {
        if (!refcounts_may_be_one(image->refcounts, cluster))
            return true;
    }
    return false;
}
