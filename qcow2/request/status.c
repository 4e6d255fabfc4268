// SPDX-License-Identifier: Apache-2.0
// status.c: what lies where (OP_BLOCK_STATUS), through the backing chain.
#include <errno.h>

#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/core/host.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/entry.h"
#include "qcow2/mapping/chain.h"
#include "qcow2/request/request.h"
#include "qcow2/request/steps.h"

// Lookups in one turn, before others have theirs.
#define LOOKUPS_A_TURN 64

static void add(struct op *op, uint64_t length, bool hole, bool zero, unsigned depth)
{
    struct extent *last = op->extent_count > 0 ? &op->extents[op->extent_count - 1] : NULL;

    if (last && last->hole == hole && last->zero == zero && last->depth == depth)
        last->length += length;
    else
        op->extents[op->extent_count++] =
            (struct extent){.length = length, .hole = hole, .zero = zero, .depth = depth};
    op->pos += length;
}

static int raw_status(struct op *op, const struct location *location)
{
    struct file *file = location->layer->file;
    uint64_t length = location->mapping.length;
    int64_t size = file_size(file);
    bool hole = false;

    if (size < 0)
        return (int)size;
    if (op->pos >= (uint64_t)size) {
        // The image's size counts whole sectors: what is behind the file's end is zeros.
        add(op, length, true, true, location->depth);
        return 0;
    }
    if (length > (uint64_t)size - op->pos)
        length = (uint64_t)size - op->pos;
    if (file->ops->extent) {
        uint64_t known = length;

        hole = file->ops->extent(file, op->pos, &known) == FILE_EXTENT_HOLE;
        length = known < length ? known : length;
    }
    add(op, length, hole, hole, location->depth);
    return 0;
}

static int plan(struct op *op)
{
    struct location location;
    int result = chain_lookup(op, &location);

    if (result != 0)
        return result;
    if (location.layer && location.layer->format == IMAGE_FORMAT_RAW)
        return raw_status(op, &location);

    enum entry_kind kind = location.mapping.kind;
    bool zero = kind != ENTRY_DATA && kind != ENTRY_COMPRESSED;
    add(op, location.mapping.length, zero && kind != ENTRY_ZERO_ALLOCATED, zero, location.depth);
    return 0;
}

static void status_step(struct op *op)
{
    int result = op->wait.result;

    for (int n = 0; result == 0 && n < LOOKUPS_A_TURN; n++) {
        if (op->pos >= op->offset + op->length || op->extent_count >= op->max_extents) {
            op_finish(op, 0);
            return;
        }
        result = plan(op);
    }
    if (result == 0)
        op_post(op);
    else if (result != OP_PARKED)
        op_finish(op, result);
}

static const char *const state_names[] = {"running"};

const struct op_machine status_machine = OP_MACHINE("block status", status_step, state_names);
