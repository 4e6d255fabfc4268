// SPDX-License-Identifier: Apache-2.0
// status.c: what lies where (OP_BLOCK_STATUS), through the backing chain; and flush, which is all
// waiting.
#include <errno.h>

#include "qcow2/engine.h"
#include "qcow2/map.h"

enum { STATUS_PLAN, STATUS_CHILD };

// Lookups in one turn, before others have theirs.
#define LOOKUPS_A_TURN 64

static void add(struct op *op, uint64_t length, bool hole, bool zero)
{
    struct extent *last = op->extent_count > 0 ? &op->extents[op->extent_count - 1] : NULL;

    if (last && last->hole == hole && last->zero == zero)
        last->length += length;
    else
        op->extents[op->extent_count++] = (struct extent){length, hole, zero};
    op->pos += length;
}

static int raw_status(struct op *op)
{
    struct file *file = op->image->file;
    uint64_t length = op->offset + op->length - op->pos;
    int64_t size = file_size(file);

    if (size < 0)
        return (int)size;
    // The size is rounded up to sectors: what is behind the file's end is zeros.
    if (op->pos >= (uint64_t)size) {
        add(op, length, true, true);
        return 0;
    }
    if (length > (uint64_t)size - op->pos)
        length = (uint64_t)size - op->pos;
    bool hole = false;
    if (file->ops->extent) {
        uint64_t known = length;

        hole = file->ops->extent(file, op->pos, &known) == FILE_EXTENT_HOLE;
        length = known < length ? known : length;
    }
    add(op, length, hole, hole);
    return 0;
}

static int backing_status(struct op *op, uint64_t length)
{
    struct image *backing = op->image->backing;

    if (!backing || op->pos >= backing->size) {
        add(op, length, true, true);
        return 0;
    }
    if (length > backing->size - op->pos)
        length = backing->size - op->pos;
    if (op_need_work(op) < 0)
        return -ENOMEM;
    op->state = STATUS_CHILD;
    op_start_child(op, backing,
                   &(struct op){.kind = OP_BLOCK_STATUS,
                                .offset = op->pos,
                                .length = length,
                                .extents = op->extents + op->extent_count,
                                .max_extents = op->max_extents - op->extent_count});
    return OP_PARKED;
}

static void child_ended(struct op *op)
{
    const struct op *child = &op->work->child;

    for (size_t i = 0; i < child->extent_count; i++)
        op->pos += child->extents[i].length;
    op->extent_count += child->extent_count;
    op->state = STATUS_PLAN;
}

static int plan(struct op *op)
{
    struct mapping m;

    op_replan(op);
    if (op->image->format == IMAGE_FORMAT_RAW)
        return raw_status(op);
    int result = map_lookup(op, op->pos, op->offset + op->length - op->pos, &m);
    if (result != 0)
        return result;
    switch (m.kind) {
    case ENTRY_UNALLOCATED:
        return backing_status(op, m.length);
    case ENTRY_ZERO:
        add(op, m.length, true, true);
        return 0;
    case ENTRY_ZERO_ALLOCATED:
        add(op, m.length, false, true);
        return 0;
    default:
        add(op, m.length, false, false);
        return 0;
    }
}

void status_step(struct op *op)
{
    int result = op->wait_result;

    if (result == 0 && op->state == STATUS_CHILD)
        child_ended(op);
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

enum { FLUSH_BEGIN, FLUSH_SYNC };

void flush_step(struct op *op)
{
    int result = op->wait_result;

    if (op->state == FLUSH_BEGIN && !op->image->read_only) {
        op->state = FLUSH_SYNC;
        result = sync_flush(op);
    }
    if (result != OP_PARKED)
        op_finish(op, result);
}
