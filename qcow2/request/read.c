// SPDX-License-Identifier: Apache-2.0
//
//   plan ── data ──────────> read the file ──┐
//    │  ├── zeros: at once ──────────────────┤
//    │  └── compressed: at once, if kept ────┤
//    └────────────── advance ────────────────┘ ──> done
//
// An op that needs data which is not in memory (an L2 slice, an inflated cluster) is parked; it
// then plans again.
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "qcow2/base/file.h"
#include "qcow2/base/loan.h"
#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/entry.h"
#include "qcow2/format/geometry.h"
#include "qcow2/mapping/chain.h"
#include "qcow2/mapping/map.h"
#include "qcow2/request/inflated_cache.h"
#include "qcow2/request/request.h"
#include "qcow2/request/steps.h"

enum { READ_PLAN, READ_DATA };

static const char *const state_names[] = {
    [READ_PLAN] = "plan",
    [READ_DATA] = "data",
};

// Notes an extent for OP_REPORT_HOLES and OP_LOAN.
static void note_part(struct op *op, const struct extent *part)
{
    struct extent *last = op->extent_count > 0 ? &op->extents[op->extent_count - 1] : NULL;
    const char *joint = last && last->data ? (const char *)last->data + last->length : NULL;

    if (op->max_extents == 0)
        return;
    if (last && last->zero == part->zero && joint == part->data)
        last->length += part->length;
    else
        op->extents[op->extent_count++] = *part;
}

// Returns true when zeros may be noted as a hole; else they are read as data. The last extent is
// kept for data.
static bool may_be_hole(const struct op *op)
{
    return (op->flags & OP_REPORT_HOLES) &&
           (op->extent_count + 1 < op->max_extents ||
            (op->extent_count > 0 && op->extents[op->extent_count - 1].zero));
}

static void advance_zeros(struct op *op, uint64_t length)
{
    bool hole = may_be_hole(op);

    if (!hole)
        memset((char *)op->buf + (op->pos - op->offset), 0, length);
    note_part(op, &(struct extent){.length = length, .hole = hole, .zero = hole});
    op->pos += length;
}

// data: address of the bytes; NULL: they are in the buffer.
static void advance_data(struct op *op, uint64_t length, const void *data)
{
    note_part(op, &(struct extent){.length = length, .data = data});
    op->pos += length;
}

// Returns true when the file may lend its bytes: an extent is free to note the loan, and the op has
// no loan of another file. The last extent is kept for data in the buffer, to which everything that
// follows can be joined.
static bool may_take_loan(const struct op *op, const struct file *file)
{
    return (op->flags & OP_LOAN) && op->extent_count + 1 < op->max_extents &&
           (!op->loan.file || op->loan.file == file);
}

static int read_data(struct op *op, const struct location *location)
{
    const struct mapping *m = &location->mapping;

    op->state = READ_DATA;
    op->step_length = m->length;
    op->iov =
        (struct iovec){.iov_base = (char *)op->buf + (op->pos - op->offset), .iov_len = m->length};
    op->io.loan_wanted = may_take_loan(op, location->layer->file);
    op_submit(op, location->layer->file, FILE_READ, m->host_offset, m->length, &op->iov, 1);
    return OP_PARKED;
}

// Guest bytes that are loaded ahead of a sequential reader of compressed clusters.
#define READ_AHEAD_BYTES (256u << 10)
// Runs of clusters that read-ahead looks at when a cluster is read: more than may be loading at
// once, and few beside the cost of inflating.
#define READ_AHEAD_LOOKS 32
// Runs of clusters that are planned in one turn. Zeros and inflated clusters take no wait, and
// other ops need their turns.
#define READ_PLANS_A_TURN 512

// Begins to load the compressed clusters that this op, or a sequential reader, needs next, as far
// as a slice in memory maps them.
static void prefetch(struct op *op, struct image *layer)
{
    const struct geometry *g = &layer->geometry;
    uint64_t slice_span = (uint64_t)map_slice_entries(layer) << g->cluster_bits;
    uint64_t slice_end = (op->pos / slice_span + 1) * slice_span;
    uint64_t end = op->offset + op->length;
    struct mapping m;

    // A cluster's place may be remembered after its slice was evicted. The op must not wait for the
    // slice here: it may be waiting for its own cluster.
    if (!map_in_memory(layer, op->pos))
        return;
    if (op->pos == layer->inflated->sequential)
        end += READ_AHEAD_BYTES;
    if (end > layer->size)
        end = layer->size;
    if (end > slice_end)
        end = slice_end;
    uint64_t at = geometry_cluster_start(g, op->pos) + g->cluster_size;
    for (int n = 0; at < end && n < READ_AHEAD_LOOKS; n++, at += m.length) {
        if (map_lookup(op, layer, at, end - at, &m) != 0)
            return;
        if (m.kind == ENTRY_COMPRESSED)
            inflated_cache_prefetch(layer, &m);
    }
}

static int read_compressed(struct op *op, const struct location *location)
{
    struct image *layer = location->layer;
    uint64_t in_cluster = geometry_in_cluster(&layer->geometry, op->pos);
    const unsigned char *bytes;
    int result = inflated_cache_get(op, layer, &location->mapping, &bytes);

    if (result == OP_PARKED || in_cluster == 0)
        prefetch(op, layer);
    if (result != 0)
        return result;
    memcpy((char *)op->buf + (op->pos - op->offset), bytes + in_cluster, location->mapping.length);
    advance_data(op, location->mapping.length, NULL);
    layer->inflated->sequential = op->pos;
    return 0;
}

static int read_plan(struct op *op)
{
    struct location location;
    int result = chain_lookup(op, &location);

    if (result != 0)
        return result;
    if (location.layer && location.mapping.kind == ENTRY_DATA)
        return read_data(op, &location);
    if (location.layer && location.mapping.kind == ENTRY_COMPRESSED)
        return read_compressed(op, &location);
    advance_zeros(op, location.mapping.length);
    return 0;
}

static void read_step(struct op *op)
{
    int result = op->wait.result;

    if (result == 0 && op->state == READ_DATA) {
        assert(op->plan.inside);
        if (op->io.loan)
            loan_take(&op->loan, op->io.file, &op->image->grace.holders, op->plan.epoch);
        op->io.loan_wanted = false;
        advance_data(op, op->step_length, op->io.loan);
        op->state = READ_PLAN;
    }
    for (int n = 0; result == 0 && op->pos < op->offset + op->length; n++) {
        if (n == READ_PLANS_A_TURN) {
            op_post(op);
            return;
        }
        result = read_plan(op);
    }
    if (result == OP_PARKED)
        return;
    if (result < 0 && op->loan.file)
        loan_return(&op->loan, op->extents, op->extent_count);
    op_finish(op, result);
}

const struct op_machine read_machine = OP_MACHINE("read", read_step, state_names);
