// SPDX-License-Identifier: Apache-2.0
//
//   plan ── copied data ──> write in place ───────────────────────────────────┐
//    ^  └── anything else ─> take clusters ──> [read head] ──> [read tail] ──> write ──> link
//    └──────────────────────────────────── advance <───────────────────────────┴───────────┘
//                                             └──> done, or with FUA: sync ──> done
//
// Clusters are taken and linked a run at a time, inside one L2 slice. From taking to linking the
// guest clusters are locked (inflight.h). Only link changes the data that the guest sees, in one
// turn.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/epoch.h"
#include "qcow2/base/file.h"
#include "qcow2/base/inflight.h"
#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/format/entry.h"
#include "qcow2/format/geometry.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/mapping/map.h"
#include "qcow2/request/change.h"
#include "qcow2/request/request.h"
#include "qcow2/request/steps.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/reclaim.h"

enum { WRITE_PLAN, WRITE_IN_PLACE, WRITE_HEAD, WRITE_TAIL, WRITE_DATA, WRITE_LINK, WRITE_SYNC };

static const char *const state_names[] = {
    [WRITE_PLAN] = "plan", [WRITE_IN_PLACE] = "in place", [WRITE_HEAD] = "head",
    [WRITE_TAIL] = "tail", [WRITE_DATA] = "data",         [WRITE_LINK] = "link",
    [WRITE_SYNC] = "sync",
};

static uint64_t write_end_of(const struct op *op)
{
    return op->offset + op->length;
}

static char *payload(const struct op *op)
{
    return (char *)op->buf + (op->pos - op->offset);
}

static int write_in_place(struct op *op, const struct mapping *m)
{
    if (guard_refuses(op->image, m->host_offset, m->length))
        return -EIO;
    op->state = WRITE_IN_PLACE;
    op->step_length = m->length;
    op->iov = (struct iovec){.iov_base = payload(op), .iov_len = m->length};
    op_submit(op, op->image->file, FILE_WRITE, m->host_offset, m->length, &op->iov, 1);
    return OP_PARKED;
}

// ---- Taking clusters

// Returns true when the mapping is written in its own way, so that a run of new clusters ends
// before it.
static bool has_own_way(const struct mapping *m)
{
    return m->copied && (m->kind == ENTRY_DATA || m->kind == ENTRY_ZERO_ALLOCATED);
}

// A run of guest bytes from op->pos to be written into new clusters.
struct stretch {
    uint64_t end;   // guest bytes
    bool all_zero;  // all its clusters read as zeros now
    bool head_zero; // the first one does
    bool tail_zero; // the last one does
};

// Extends the stretch over the mappings that follow m in its slice.
static int find_stretch(struct op *op, const struct mapping *m, struct stretch *s)
{
    struct image *image = op->image;
    uint64_t slice_span = (uint64_t)map_slice_entries(image) << image->geometry.cluster_bits;
    uint64_t limit = (op->pos / slice_span + 1) * slice_span;
    struct mapping next = *m;

    if (limit > write_end_of(op))
        limit = write_end_of(op);
    s->head_zero = s->all_zero = map_reads_as_zeros(image, m, op->pos);
    s->end = op->pos;
    for (;;) {
        uint64_t length = next.length;

        // Zeros begin at the end of the backing image, which may lie inside the run.
        if (next.kind == ENTRY_UNALLOCATED && image->backing && s->end < image->backing->size &&
            image->backing->size - s->end < length)
            length =
                geometry_cluster_start(&image->geometry,
                                       image->backing->size + image->geometry.cluster_size - 1) -
                s->end;
        if (length > next.length)
            length = next.length;
        s->tail_zero = map_reads_as_zeros(image, &next, s->end);
        s->all_zero = s->all_zero && s->tail_zero;
        s->end += length;
        if (s->end >= limit)
            break;
        int result = map_lookup(op, op->image, s->end, limit - s->end, &next);
        if (result != 0)
            return result;
        if (has_own_way(&next))
            break;
    }
    if (s->end > limit)
        s->end = limit;
    return 0;
}

// Cuts the stretch to the given number of clusters. The last one of them needs no copy, because it
// is overwritten to its end.
static void cut_stretch(struct op *op, struct stretch *s, uint64_t clusters)
{
    struct image *image = op->image;
    uint64_t end = geometry_cluster_start(&image->geometry, op->pos) +
                   (clusters << image->geometry.cluster_bits);

    if (end < s->end)
        s->end = end;
}

// Decides how much of the first and last cluster around the payload is written with it.
//
//   around it the guest had    the target        is written along    data before its entry
//   zeros                      reads as zeros    nothing             no
//   zeros                      anything else     zeros               yes
//   anything else              either            a copy              yes
//
// The last column applies to the whole stretch: one cluster that did not read as zeros is enough.
static int plan_edges(struct op *op, const struct stretch *s, bool zero_target)
{
    struct image *image = op->image;
    struct op_work *work = op->work;
    uint64_t head = geometry_in_cluster(&image->geometry, op->pos);
    uint64_t over = geometry_in_cluster(&image->geometry, s->end);
    uint64_t tail = over ? image->geometry.cluster_size - over : 0;

    work->copy_head = head > 0 && !s->head_zero;
    work->copy_tail = tail > 0 && !s->tail_zero;
    work->head_length = work->copy_head || !zero_target ? (size_t)head : 0;
    work->tail_length = work->copy_tail || !zero_target ? (size_t)tail : 0;
    if (work->head_length + work->tail_length > 0 &&
        op_bounce(op, work->head_length + work->tail_length) < 0)
        return -ENOMEM;
    work->needs_barrier = !s->all_zero || !zero_target;
    op->step_length = s->end - op->pos;
    op->state = WRITE_HEAD;
    return 0;
}

static void lock_stretch(struct op *op, const struct stretch *s)
{
    unsigned bits = op->image->geometry.cluster_bits;

    inflight_lock(&op->image->inflight, &op->work->range, op->pos >> bits,
                  ((s->end - 1) >> bits) + 1);
}

// Uses the host clusters of zero clusters that keep one.
static int use_reserved(struct op *op, const struct mapping *m)
{
    struct image *image = op->image;
    struct stretch s = {
        .end = op->pos + m->length, .all_zero = true, .head_zero = true, .tail_zero = true};

    if (guard_refuses(image, m->host_offset, m->length))
        return -EIO;
    op->work->target = m->host_offset >> image->geometry.cluster_bits;
    lock_stretch(op, &s);
    return plan_edges(op, &s, false);
}

static int take_clusters(struct op *op, const struct mapping *m)
{
    struct image *image = op->image;
    unsigned bits = image->geometry.cluster_bits;
    struct stretch s;
    int result = find_stretch(op, m, &s);

    if (result == 0)
        result = alloc_clusters(op, ((s.end - 1) >> bits) - (op->pos >> bits) + 1, false,
                                &op->work->run);
    if (result == -ENOSPC)
        result = reclaim_wait(op);
    if (result != 0)
        return result;
    if (guard_refuses(image, op->work->run.first << bits, op->work->run.count << bits))
        return -EIO;
    cut_stretch(op, &s, op->work->run.count);
    op->work->target = op->work->run.first;
    lock_stretch(op, &s);
    return plan_edges(op, &s, op->work->run.zero);
}

static int plan_allocating(struct op *op, const struct mapping *m)
{
    struct image *image = op->image;
    unsigned bits = image->geometry.cluster_bits;
    uint64_t last = op->pos + m->length - 1;
    int result = op_need_work(op);

    // New clusters are taken for the mappings that follow, too.
    if (!has_own_way(m))
        last = write_end_of(op) - 1;
    if (result == 0)
        result = op_bounce_wait(op);
    if (result == 0)
        result = inflight_wait(&image->inflight, op->pos >> bits, (last >> bits) + 1, op);
    if (result == 0)
        result = change_mapping(op);
    if (result == 0)
        result = map_own_table(op, op->pos);
    if (result != 0)
        return result;
    return has_own_way(m) ? use_reserved(op, m) : take_clusters(op, m);
}

static int write_plan(struct op *op)
{
    struct mapping m;

    epoch_enter(&op->image->grace.plans, &op->plan);
    int result = change_prepare(op);
    if (result == 0)
        result = map_lookup(op, op->image, op->pos, write_end_of(op) - op->pos, &m);
    if (result != 0)
        return result;
    if (m.copied && change_contradicted(op->image, &m))
        m.copied = false;
    if (m.kind == ENTRY_DATA && m.copied)
        return write_in_place(op, &m);
    return plan_allocating(op, &m);
}

// ---- Copy on write

static int write_start_copy(struct op *op, uint64_t guest, uint64_t length, unsigned char *to)
{
    struct image *image = op->image;

    // The last cluster may reach beyond the end of the image, where zeros are.
    if (guest >= image->size)
        return 0;
    if (length > image->size - guest)
        length = image->size - guest;
    op_start_child(op, image,
                   &(struct op){.kind = OP_READ, .offset = guest, .length = length, .buf = to});
    return OP_PARKED;
}

static int copy_head(struct op *op)
{
    op->state = WRITE_TAIL;
    if (!op->work->copy_head)
        return 0;
    return write_start_copy(op, op->pos - op->work->head_length, op->work->head_length,
                            op->work->bounce);
}

static int copy_tail(struct op *op)
{
    struct op_work *work = op->work;

    op->state = WRITE_DATA;
    if (!work->copy_tail)
        return 0;
    return write_start_copy(op, op->pos + op->step_length, work->tail_length,
                            work->bounce + work->head_length);
}

static int write_data(struct op *op)
{
    struct op_work *work = op->work;
    const struct geometry *g = &op->image->geometry;
    uint64_t host = (work->target << g->cluster_bits) + geometry_in_cluster(g, op->pos);
    int n = 0;

    if (work->head_length > 0)
        work->iov[n++] = (struct iovec){work->bounce, work->head_length};
    work->iov[n++] = (struct iovec){payload(op), op->step_length};
    if (work->tail_length > 0)
        work->iov[n++] = (struct iovec){work->bounce + work->head_length, work->tail_length};
    op->state = WRITE_LINK;
    op_submit(op, op->image->file, FILE_WRITE, host - work->head_length,
              work->head_length + op->step_length + work->tail_length, work->iov, n);
    return OP_PARKED;
}

// ---- Link

static void write_advance(struct op *op)
{
    sync_note_write(op->image);
    op->pos += op->step_length;
    op->state = WRITE_PLAN;
}

// Links the clusters, whose data is in the file: from now on the guest sees it.
static int link_clusters(struct op *op)
{
    struct op_work *work = op->work;
    unsigned bits = op->image->geometry.cluster_bits;
    uint64_t last = (op->pos + op->step_length - 1) >> bits;
    int result = change_link(op, work->target, last - (op->pos >> bits) + 1, ENTRY_DATA);

    if (result != 0)
        return result;
    op_bounce_free(op);
    write_advance(op);
    return 0;
}

// ---- The step function

static int write_turn(struct op *op)
{
    switch (op->state) {
    case WRITE_PLAN:
        return write_plan(op);
    case WRITE_IN_PLACE:
        write_advance(op);
        return 0;
    case WRITE_HEAD:
        return copy_head(op);
    case WRITE_TAIL:
        return copy_tail(op);
    case WRITE_DATA:
        return write_data(op);
    default:
        return link_clusters(op);
    }
}

static void write_step(struct op *op)
{
    int result = op->wait.result;

    if (op->state == WRITE_SYNC) {
        op_finish(op, result);
        return;
    }
    while (result == 0 && op->pos < write_end_of(op))
        result = write_turn(op);
    if (result == 0 && (op->flags & OP_FUA)) {
        op->state = WRITE_SYNC;
        result = sync_wait(op);
    }
    if (result != OP_PARKED)
        op_finish(op, result);
}

const struct op_machine write_machine = OP_MACHINE("write", write_step, state_names);
