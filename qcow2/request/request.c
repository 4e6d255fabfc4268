// SPDX-License-Identifier: Apache-2.0
#include "qcow2/request/request.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/container.h"
#include "qcow2/base/epoch.h"
#include "qcow2/base/inflight.h"
#include "qcow2/base/op.h"
#include "qcow2/base/runq.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/space/quarantine.h"

// Checks an op at its start. Returns 0 or a negative errno.
static int admit(const struct image *image, const struct op *op)
{
    bool changes = op->kind == OP_WRITE || op->kind == OP_DISCARD || op->kind == OP_WRITE_ZEROES;

    if (op->kind != OP_FLUSH) {
        if (op->offset > image->size || op->length > image->size - op->offset)
            return changes ? -ENOSPC : -EINVAL;
        if ((op->kind == OP_READ || op->kind == OP_WRITE) && op->length > OP_PAYLOAD_MAX)
            return -EINVAL;
    }
    if (changes && image->read_only)
        return -EPERM;
    if (changes || op->kind == OP_FLUSH)
        return image->latched_error;
    return 0;
}

// Asserts the owner's promises (op.h).
static void assert_op(const struct op *op)
{
    bool has_payload = op->kind == OP_READ || op->kind == OP_WRITE;

    assert(op->done && op->kind <= OP_BLOCK_STATUS);
    assert(!has_payload || op->length == 0 || op->buf);
    assert(op->max_extents == 0 || op->extents);
    assert(op->kind != OP_BLOCK_STATUS || op->max_extents > 0);
    assert(!(op->flags & (OP_LOAN | OP_REPORT_HOLES)) || op->kind == OP_READ);
    assert(!(op->flags & (OP_NO_HOLE | OP_FAST_ZERO)) || op->kind == OP_WRITE_ZEROES);
}

void op_start(struct image *image, struct op *op)
{
    assert_op(op);
    op->image = image;
    op->wait.task = (struct task){.run = op_take_turn};
    op->wait.runq = image->runq;
    op->wait.result = 0;
    op->wait.event = NULL;
    op->machine = image->machines[op->kind];
    op->state = 0;
    op->result = 0;
    op->pos = op->offset;
    op->extent_count = 0;
    op->plan.inside = NULL;
    op->scanned = false;
    op->space_waits = 0;
    op->extent_tries = 0;
    op->descent.layer = NULL;
    op->work = NULL;
    image->op_count++;
    LIST_INSERT_HEAD(&image->running, op, running_link);

    int result = admit(image, op);
    if (result < 0) {
        op_finish(op, result);
        return;
    }
    if (image->host.trace)
        image_trace_op(image, op, "starts");
    op->machine->step(op);
}

int op_need_work(struct op *op)
{
    struct image *image = op->image;

    if (op->work)
        return 0;

    struct op_work *work = SLIST_FIRST(&image->spare_work);
    if (work) {
        SLIST_REMOVE_HEAD(&image->spare_work, spare_link);
        image->spare_work_count--;
    } else {
        work = malloc(sizeof(*work));
        if (!work)
            return -ENOMEM;
    }
    *work = (struct op_work){.parent = op};
    waitq_init(&work->range.waiters, "a change of the same guest clusters");
    op->work = work;
    return 0;
}

int op_bounce_wait(struct op *op)
{
    struct image *image = op->image;

    return image->bounce_bytes < OP_BOUNCE_BYTES_MAX ? 0 : op_park(op, &image->bounce_room);
}

int op_bounce(struct op *op, size_t bytes)
{
    struct op_work *work = op->work;

    work->bounce = calloc(1, bytes);
    if (!work->bounce)
        return -ENOMEM;
    work->bounce_bytes = bytes;
    op->image->bounce_bytes += bytes;
    return 0;
}

void op_bounce_free(struct op *op)
{
    struct op_work *work = op->work;
    struct image *image = op->image;

    free(work->bounce);
    work->bounce = NULL;
    image->bounce_bytes -= work->bounce_bytes;
    if (work->bounce_bytes > 0 && image->bounce_bytes < OP_BOUNCE_BYTES_MAX)
        waitq_wake(&image->bounce_room, 0);
    work->bounce_bytes = 0;
}

static void release_work(struct op *op)
{
    struct image *image = op->image;
    struct op_work *work = op->work;

    if (!work)
        return;
    op_bounce_free(op);
    op->work = NULL;
    if (work->run.count > 0)
        quarantine_add(image, work->run.first, work->run.count);
    inflight_unlock(&image->inflight, &work->range);
    if (image->spare_work_count < OP_SPARE_WORK_MAX) {
        SLIST_INSERT_HEAD(&image->spare_work, work, spare_link);
        image->spare_work_count++;
    } else {
        free(work);
    }
}

static void child_done(struct op *child);

// Returns true when the op's owner is told of a change that is not durable.
static bool leaves_at_stake(const struct op *op)
{
    bool changes = op->kind == OP_WRITE || op->kind == OP_DISCARD || op->kind == OP_WRITE_ZEROES;

    return changes && op->result == 0 && !(op->flags & OP_FUA) && op->done != child_done;
}

static void tell_owner(struct task *task)
{
    struct op *op = container_of(task, struct op, wait.task);

    if (op->image->host.trace)
        image_trace_op(op->image, op, op->result < 0 ? strerror(-op->result) : "done");
    if (leaves_at_stake(op))
        sync_note_answered(op->image, op->length);
    op->image->op_count--;
    LIST_REMOVE(op, running_link);
    op->done(op);
}

void op_finish(struct op *op, int result)
{
    // A finished op that still waited would be woken after its end.
    assert(result <= 0 && !op->wait.event && !op->wait.task.queued);
    assert(op->io.result != FILE_IO_RUNNING);
    release_work(op);
    epoch_leave(&op->plan);
    op->result = result;
    op->wait.task.run = tell_owner;
    op_post(op);
}

static void child_done(struct op *child)
{
    struct op *op = container_of(child, struct op_work, child)->parent;

    op->wait.result = child->result;
    op->machine->step(op);
}

void op_start_child(struct op *op, struct image *image, const struct op *child)
{
    epoch_leave(&op->plan);
    op->work->child = *child;
    op->work->child.done = child_done;
    op_start(image, &op->work->child);
}
