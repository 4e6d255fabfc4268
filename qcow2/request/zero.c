// SPDX-License-Identifier: Apache-2.0
// zero.c: discard and write zeroes. Whole clusters change their mapping, a slice in one turn. A
// part of a cluster is left alone when the request is a discard. Else the cluster becomes a zero
// cluster if the rest of it reads as zeros, too; if not, zeros are written to the part.
//
//   plan ── part of a cluster ──> [status of the rest: plan again] ─> child write of zeros ───┐
//    ^  ├── whole clusters ─────> new entries ──> [wait for older ops ──> reserve space] ─────┤
//    │  └── to be provided for ─> take clusters ──> [reserve space, or make them zero] ─> link ┤
//    └────────────────────────────── advance <────────────────────────────────────────────────┘
//                                       └──> done, or with FUA: sync ──> done
//
// With NO_HOLE later writes must find space. From version 3 on the cluster gets an entry with the
// ZERO flag and a host cluster (ENTRY_ZERO_ALLOCATED): no data is written, whatever the host
// cluster holds, and so no barrier is needed. Version 2 has no such flag: zeros are in the file
// there.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "qcow2/base/epoch.h"
#include "qcow2/base/grace.h"
#include "qcow2/base/file.h"
#include "qcow2/base/inflight.h"
#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/format/entry.h"
#include "qcow2/format/format.h"
#include "qcow2/format/geometry.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/mapping/map.h"
#include "qcow2/request/change.h"
#include "qcow2/request/request.h"
#include "qcow2/request/steps.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/reclaim.h"

enum {
    ZERO_PLAN,
    ZERO_DRAIN,
    ZERO_RESERVED,
    ZERO_CHECKED,
    ZERO_PROVIDED,
    ZERO_WRITTEN,
    ZERO_LINK,
    ZERO_SYNC
};

static const char *const state_names[] = {
    [ZERO_PLAN] = "plan",       [ZERO_DRAIN] = "drain",       [ZERO_RESERVED] = "reserved",
    [ZERO_CHECKED] = "checked", [ZERO_PROVIDED] = "provided", [ZERO_WRITTEN] = "written",
    [ZERO_LINK] = "link",       [ZERO_SYNC] = "sync",
};

static uint64_t zero_end_of(const struct op *op)
{
    return op->offset + op->length;
}

// Returns true when the format has zero clusters (version 3).
static bool has_zero_flag(const struct op *op)
{
    return op->image->header.version >= 3;
}

static void zero_advance(struct op *op, uint64_t length)
{
    op->pos += length;
    op->state = ZERO_PLAN;
}

// Returns true when the range ends with the image, inside its last cluster, which counts as whole.
static bool ends_whole(const struct op *op)
{
    return zero_end_of(op) == op->image->size;
}

// Returns the bytes from pos that are whole clusters; 0 when pos is inside a cluster, or only a
// part of it is in the range.
static uint64_t whole_clusters(const struct op *op)
{
    const struct geometry *g = &op->image->geometry;

    if (geometry_in_cluster(g, op->pos) != 0)
        return 0;
    if (ends_whole(op))
        return zero_end_of(op) - op->pos;
    return geometry_cluster_start(g, zero_end_of(op)) - op->pos;
}

// Looks up the mapping at pos, for at most length bytes. Clears a COPIED flag that refcounts
// contradict.
static int look_up(struct op *op, uint64_t length, struct mapping *m)
{
    int result = map_lookup(op, op->image, op->pos, length, m);

    if (result == 0 && m->copied && change_contradicted(op->image, m))
        m->copied = false;
    return result;
}

// ---- Whole clusters

// Finds the entry that makes the cluster of guest read as zeros, with its present host cluster or
// without one. Returns false when the format has no such entry.
static bool wanted_entry(const struct op *op, const struct mapping *m, uint64_t *raw)
{
    const struct image *image = op->image;
    bool behind = image->backing && op->pos < image->backing->size;

    if ((op->flags & OP_NO_HOLE) && m->copied &&
        (m->kind == ENTRY_DATA || m->kind == ENTRY_ZERO_ALLOCATED) && has_zero_flag(op)) {
        *raw = entry_zero_allocated(m->host_offset);
        return true;
    }
    if (op->flags & OP_NO_HOLE)
        return false;
    if (!behind)
        *raw = 0;
    else if (has_zero_flag(op))
        *raw = FORMAT_L2_ZERO;
    else
        return false;
    return true;
}

// Returns true when the mapping needs no change.
static bool satisfied(const struct op *op, const struct mapping *m)
{
    if (op->flags & OP_NO_HOLE)
        return m->kind == ENTRY_ZERO_ALLOCATED && m->copied;
    return (m->kind == ENTRY_UNALLOCATED || m->kind == ENTRY_ZERO) &&
           map_reads_as_zeros(op->image, m, op->pos);
}

// Returns the number of clusters from pos to the end of its slice.
static uint64_t left_in_slice(const struct op *op)
{
    uint64_t entries = map_slice_entries(op->image);

    return entries - (geometry_l2_index(&op->image->geometry, op->pos) & (entries - 1));
}

// Begins to wait for older writes to clusters that keep their host clusters: an older write that
// ended after a newer one would bring its data back.
static int zero_drain(struct op *op, uint64_t clusters, uint64_t host_offset)
{
    unsigned bits = op->image->geometry.cluster_bits;
    uint64_t first = op->pos >> bits;

    inflight_lock(&op->image->inflight, &op->work->range, first, first + clusters);
    op->work->target = host_offset >> bits;
    op->state = ZERO_DRAIN;
    return 0;
}

// A mapped cluster may lie in a hole of the file, as all clusters of 'qemu-img create -o
// preallocation=metadata' do: the host reserves its space now.
static int drained(struct op *op)
{
    const struct geometry *g = &op->image->geometry;

    if (grace_wait_plans(op, &op->image->grace, op->plan.epoch) == OP_PARKED)
        return OP_PARKED;
    // No older write is still on its way to these clusters.
    assert(epoch_passed(&op->image->grace.plans, op->plan.epoch));
    op->state = ZERO_RESERVED;
    if (!alloc_reserves(op->image->alloc))
        return 0;
    op_submit(op, op->image->file, FILE_ALLOCATE, op->work->target << g->cluster_bits,
              geometry_clusters(g, op->step_length) << g->cluster_bits, NULL, 0);
    return OP_PARKED;
}

static void reserved(struct op *op)
{
    inflight_unlock(&op->image->inflight, &op->work->range);
    zero_advance(op, op->step_length);
}

// Gives the clusters of m that are in the slice their new entries.
static int replace_entries(struct op *op, const struct mapping *m, uint64_t raw)
{
    struct image *image = op->image;
    const struct geometry *g = &image->geometry;
    bool keeps = (raw & FORMAT_L2_OFFSET_MASK) != 0;
    uint64_t clusters = geometry_clusters(g, m->length);
    struct slice *slice;
    unsigned index;
    int result = keeps ? op_need_work(op) : 0;

    if (clusters > left_in_slice(op))
        clusters = left_in_slice(op);
    if (result == 0)
        result = map_own_table(op, op->pos);
    if (result == 0)
        result = map_slice_for_change(op, op->pos, &slice, &index);
    if (result != 0)
        return result;
    for (uint64_t i = 0; i < clusters; i++)
        map_replace(image, slice, index + (unsigned)i, keeps ? raw + (i << g->cluster_bits) : raw);
    op->step_length = clusters << g->cluster_bits;
    if (op->step_length > m->length)
        op->step_length = m->length;
    if (keeps)
        return zero_drain(op, clusters, m->host_offset);
    zero_advance(op, op->step_length);
    return 0;
}

// ---- Clusters that are provided for

static int link_provided(struct op *op)
{
    int result = change_link(op, op->work->run.first, op->work->run.count,
                             has_zero_flag(op) ? ENTRY_ZERO_ALLOCATED : ENTRY_DATA);

    if (result == 0)
        zero_advance(op, op->step_length);
    return result;
}

// Takes host clusters for a run of guest clusters that have none of their own.
static int provide(struct op *op, const struct mapping *m)
{
    struct image *image = op->image;
    const struct geometry *g = &image->geometry;
    uint64_t want = geometry_clusters(g, m->length);
    int result = op_need_work(op);

    if (want > left_in_slice(op))
        want = left_in_slice(op);
    if (result == 0)
        result = map_own_table(op, op->pos);
    if (result == 0)
        result = alloc_clusters(op, want, false, &op->work->run);
    if (result == -ENOSPC)
        result = reclaim_wait(op);
    if (result != 0)
        return result;

    struct alloc_run *run = &op->work->run;
    uint64_t first = op->pos >> g->cluster_bits;
    if (guard_refuses(image, run->first << g->cluster_bits, run->count << g->cluster_bits))
        return -EIO;
    inflight_lock(&image->inflight, &op->work->range, first, first + run->count);
    op->step_length = run->count << g->cluster_bits;
    if (op->step_length > m->length)
        op->step_length = m->length;
    // Fresh space is reserved already. A cluster that was used before may have lost its space to a
    // punch.
    enum file_io_kind kind = has_zero_flag(op) ? FILE_ALLOCATE : FILE_ZERO;
    op->work->needs_barrier = kind == FILE_ZERO && !run->zero;
    if (run->zero || (kind == FILE_ALLOCATE && !alloc_reserves(image->alloc))) {
        op->state = ZERO_LINK;
        return 0;
    }
    op->state = ZERO_PROVIDED;
    op_submit(op, op->image->file, kind, run->first << g->cluster_bits,
              run->count << g->cluster_bits, NULL, 0);
    return OP_PARKED;
}

// ---- Parts of clusters

static int write_zeros(struct op *op, uint64_t length)
{
    if (op_need_work(op) < 0)
        return -ENOMEM;
    // The child only reads the buffer; untouched pages of calloc share the kernel's zero page.
    op->work->bounce = calloc(1, length);
    if (!op->work->bounce)
        return -ENOMEM;
    op->state = ZERO_WRITTEN;
    op->step_length = length;
    op_start_child(
        op, op->image,
        &(struct op){
            .kind = OP_WRITE, .offset = op->pos, .length = length, .buf = op->work->bounce});
    return OP_PARKED;
}

static void zeros_written(struct op *op)
{
    op_bounce_free(op);
    zero_advance(op, op->step_length);
}

// Asks for the status of the whole cluster, in which a backing image may show through.
static int check_cluster(struct op *op)
{
    const struct geometry *g = &op->image->geometry;
    uint64_t begin = geometry_cluster_start(g, op->pos);
    uint64_t length = g->cluster_size;

    if (length > op->image->size - begin)
        length = op->image->size - begin;
    if (op_need_work(op) < 0)
        return -ENOMEM;
    op->state = ZERO_CHECKED;
    op_start_child(op, op->image,
                   &(struct op){.kind = OP_BLOCK_STATUS,
                                .offset = begin,
                                .length = length,
                                .extents = &op->work->extent,
                                .max_extents = 1});
    return OP_PARKED;
}

// Reads the answer to check_cluster(), which holds as long as the cluster has no entry of its own.
static bool found_zeros(const struct op *op)
{
    return op->state == ZERO_CHECKED && op->work->extent.zero &&
           op->work->extent.length == op->work->child.length;
}

// Zeroes a part of a cluster whose other bytes read as zeros, too.
static int zero_part_of_zeros(struct op *op, const struct mapping *m)
{
    if (!(op->flags & OP_NO_HOLE)) {
        if (!map_reads_as_zeros(op->image, m, op->pos))
            return replace_entries(op, m, FORMAT_L2_ZERO);
    } else if (m->kind != ENTRY_ZERO_ALLOCATED || !m->copied) {
        return has_zero_flag(op) ? provide(op, m) : write_zeros(op, m->length);
    }
    zero_advance(op, m->length);
    return 0;
}

// Zeroes at most one cluster from pos, by writing zeros. Called when the mapping cannot express it.
static int zero_part(struct op *op)
{
    const struct geometry *g = &op->image->geometry;
    uint64_t length = g->cluster_size - geometry_in_cluster(g, op->pos);
    struct mapping m;

    if (length > zero_end_of(op) - op->pos)
        length = zero_end_of(op) - op->pos;
    if (op->kind == OP_DISCARD) {
        zero_advance(op, length);
        return 0;
    }
    uint64_t cluster = op->pos >> g->cluster_bits;
    int result = inflight_wait(&op->image->inflight, cluster, cluster + 1, op);
    if (result == 0)
        result = look_up(op, length, &m);
    if (result != 0)
        return result;
    if (map_reads_as_zeros(op->image, &m, op->pos) ||
        (m.kind == ENTRY_UNALLOCATED && found_zeros(op)))
        return zero_part_of_zeros(op, &m);
    if (m.kind == ENTRY_UNALLOCATED && has_zero_flag(op) && op->state != ZERO_CHECKED)
        return check_cluster(op);
    return write_zeros(op, m.length);
}

// Continues when the host has no such operation. If it cannot reserve space, nothing depends on
// that. If it cannot make clusters zero, they are given up and zeros are written like data.
static int do_without_host(struct op *op)
{
    struct op_work *work = op->work;

    op->wait.result = 0;
    if (has_zero_flag(op)) {
        alloc_cannot_reserve(op->image->alloc);
        return 0;
    }
    quarantine_add(op->image, work->run.first, work->run.count);
    work->run.count = 0;
    inflight_unlock(&op->image->inflight, &work->range);
    op->state = ZERO_PLAN;
    return op->flags & OP_FAST_ZERO ? -ENOTSUP : zero_part(op);
}

// ---- The step function

static int zero_whole(struct op *op, uint64_t length)
{
    struct image *image = op->image;
    unsigned bits = image->geometry.cluster_bits;
    struct mapping m;
    uint64_t raw;
    int result = look_up(op, length, &m);

    if (result != 0)
        return result;
    result = inflight_wait(&image->inflight, op->pos >> bits,
                           ((op->pos + m.length - 1) >> bits) + 1, op);
    if (result != 0)
        return result;
    if (satisfied(op, &m)) {
        zero_advance(op, m.length);
        return 0;
    }
    if (wanted_entry(op, &m, &raw))
        return replace_entries(op, &m, raw);
    if (op->kind == OP_WRITE_ZEROES && (op->flags & OP_NO_HOLE) &&
        !(m.kind == ENTRY_DATA && m.copied))
        return provide(op, &m);
    return zero_part(op);
}

static int zero_plan(struct op *op)
{
    epoch_enter(&op->image->grace.plans, &op->plan);

    int result = change_prepare(op);
    if (result == 0)
        result = change_mapping(op);
    if (result != 0)
        return result;

    uint64_t whole = whole_clusters(op);
    return whole > 0 ? zero_whole(op, whole) : zero_part(op);
}

static int zero_turn(struct op *op)
{
    switch (op->state) {
    case ZERO_PLAN:
    case ZERO_CHECKED:
        return zero_plan(op);
    case ZERO_DRAIN:
        return drained(op);
    case ZERO_RESERVED:
        reserved(op);
        return 0;
    case ZERO_WRITTEN:
        zeros_written(op);
        return 0;
    case ZERO_PROVIDED:
        op->state = ZERO_LINK;
        return 0;
    default:
        return link_provided(op);
    }
}

// Returns true when data would have to be written: the range has parts of clusters, or the format
// has no zero clusters.
static bool slow(const struct op *op)
{
    const struct image *image = op->image;

    return geometry_in_cluster(&image->geometry, op->offset) != 0 ||
           (geometry_in_cluster(&image->geometry, zero_end_of(op)) != 0 && !ends_whole(op)) ||
           (!has_zero_flag(op) && (image->backing || (op->flags & OP_NO_HOLE)));
}

static void zero_step(struct op *op)
{
    int result = op->wait.result;

    if (op->state == ZERO_SYNC) {
        op_finish(op, result);
        return;
    }
    if ((op->state == ZERO_PROVIDED || op->state == ZERO_RESERVED) && result == -EOPNOTSUPP)
        result = do_without_host(op);
    if ((op->flags & OP_FAST_ZERO) && op->pos == op->offset && slow(op))
        result = -ENOTSUP;
    if (result == 0 && op->pos < zero_end_of(op))
        result = zero_turn(op);
    if (result == 0 && op->pos < zero_end_of(op)) {
        // Only one slice is changed in a turn, so that other ops run between the parts of a large
        // request.
        op_post(op);
        return;
    }
    if (result == 0 && (op->flags & OP_FUA)) {
        op->state = ZERO_SYNC;
        result = sync_wait(op);
    }
    if (result != OP_PARKED)
        op_finish(op, result);
}

const struct op_machine discard_machine = OP_MACHINE("discard", zero_step, state_names);

const struct op_machine zero_machine = OP_MACHINE("write zeroes", zero_step, state_names);
