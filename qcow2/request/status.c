// SPDX-License-Identifier: Apache-2.0
// status.c: block status (OP_BLOCK_STATUS) through the backing chain.
//
// Data that lies in a hole of the file reads as zeros. In a raw image it counts as a hole. In a
// qcow2 image it does not, because the image has mapped the space, as 'qemu-img create -o
// preallocation' does.
#include "qcow2/base/file_extents.h"
#include "qcow2/base/op.h"
#include "qcow2/core/host.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/entry.h"
#include "qcow2/mapping/chain.h"
#include "qcow2/request/request.h"
#include "qcow2/request/steps.h"

enum { STATUS_BEGIN, STATUS_PLAN };

// Lookups of one turn, because other ops need theirs.
#define LOOKUPS_A_TURN 64

// Adds the extent at op->pos. The op ends there when no extent is left.
static void status_add(struct op *op, const struct extent *next)
{
    struct extent *last = op->extent_count > 0 ? &op->extents[op->extent_count - 1] : NULL;

    if (last && last->hole == next->hole && last->zero == next->zero &&
        last->depth == next->depth) {
        last->length += next->length;
    } else if (op->extent_count < op->max_extents) {
        op->extents[op->extent_count++] = *next;
    } else {
        op->pos = op->offset + op->length;
        return;
    }
    op->pos += next->length;
}

// Adds the extents that the file has at a mapping of data; hole: its zeros count as holes.
static int add_data(struct op *op, const struct location *location)
{
    struct image *layer = location->layer;
    struct extent next = {.length = location->mapping.length, .depth = location->depth};
    enum file_extent_kind kind;
    int result =
        file_extents_get(op, layer->file, location->mapping.host_offset, &next.length, &kind);

    if (result != 0)
        return result;
    next.zero = kind == FILE_EXTENT_HOLE;
    next.hole = next.zero && layer->format == IMAGE_FORMAT_RAW;
    status_add(op, &next);
    return 0;
}

static int status_plan(struct op *op)
{
    struct location location;
    int result = chain_lookup(op, &location);

    if (result != 0)
        return result;
    const struct mapping *m = &location.mapping;
    if (m->kind == ENTRY_DATA)
        return add_data(op, &location);
    bool zero = m->kind != ENTRY_COMPRESSED;
    status_add(op, &(struct extent){.length = m->length,
                                    .hole = zero && m->kind != ENTRY_ZERO_ALLOCATED,
                                    .zero = zero,
                                    .depth = location.depth});
    return 0;
}

// Forgets the known extents of files that other programs write to.
static void distrust_files(const struct op *op)
{
    for (const struct image *layer = op->image; layer; layer = layer->backing)
        file_extents_distrust(layer->file);
}

static void status_step(struct op *op)
{
    int result = op->wait.result;

    if (op->state == STATUS_BEGIN) {
        distrust_files(op);
        op->state = STATUS_PLAN;
    }
    for (int n = 0; result == 0 && n < LOOKUPS_A_TURN; n++) {
        if (op->pos >= op->offset + op->length) {
            op_finish(op, 0);
            return;
        }
        result = status_plan(op);
    }
    if (result == 0)
        op_post(op);
    else if (result != OP_PARKED)
        op_finish(op, result);
}

static const char *const state_names[] = {[STATUS_BEGIN] = "begin", [STATUS_PLAN] = "plan"};

const struct op_machine status_machine = OP_MACHINE("block status", status_step, state_names);
