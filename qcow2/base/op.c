// SPDX-License-Identifier: Apache-2.0
// op.c: the life of an op. It is started, takes turns on the run queue, and is finished; between
// two turns it waits for one thing: an I/O, a child op, or a place in a wait queue.
#include "qcow2/base/op.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "qcow2/engine.h"

static void take_turn(struct task *task)
{
    struct op *op = (struct op *)((char *)task - offsetof(struct op, task));

    op->step(op);
}

static void tell_owner(struct task *task)
{
    struct op *op = (struct op *)((char *)task - offsetof(struct op, task));

    op->image->op_count--;
    op->done(op);
}

void op_post(struct op *op)
{
    op->task.run = take_turn;
    runq_post(op->image->runq, &op->task);
}

void op_init_internal(struct op *op, struct image *image, void (*step)(struct op *op))
{
    *op = (struct op){.image = image, .step = step};
}

static void (*const step_functions[])(struct op *op) = {
    [OP_READ] = read_step,         [OP_WRITE] = write_step, [OP_DISCARD] = zero_step,
    [OP_WRITE_ZEROES] = zero_step, [OP_FLUSH] = flush_step, [OP_BLOCK_STATUS] = status_step,
};

// Whether the op may run at all: 0 or a negative errno.
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

void op_start(struct image *image, struct op *op)
{
    op->image = image;
    op->task = (struct task){0};
    op->step = step_functions[op->kind];
    op->state = 0;
    op->wait_result = 0;
    op->result = 0;
    op->pos = op->offset;
    op->extent_count = 0;
    op->active = false;
    op->scanned = false;
    op->space_waits = 0;
    op->descent.layer = NULL;
    op->work = NULL;
    op->lender = NULL;
    image->op_count++;

    int result = admit(image, op);
    if (result < 0) {
        op_finish(op, result);
        return;
    }
    op->step(op);
}

// An op has left its place in the order.
static void tell_left(struct image *image)
{
    quarantine_kick(image);
    waitq_wake(&image->older_gone, 0);
}

void op_replan(struct op *op)
{
    struct image *image = op->image;

    if (op->active) {
        // Nothing can be waiting for it to move on when it was the last to plan.
        if (op->begun + 1 == image->next_begun)
            return;
        TAILQ_REMOVE(&image->active, op, active_link);
    }
    op->active = true;
    op->begun = image->next_begun++;
    TAILQ_INSERT_TAIL(&image->active, op, active_link);
    tell_left(image);
}

void op_leave_active(struct op *op)
{
    if (!op->active)
        return;
    op->active = false;
    TAILQ_REMOVE(&op->image->active, op, active_link);
    tell_left(op->image);
}

int op_wait_for_older(struct op *op)
{
    const struct op *oldest = TAILQ_FIRST(&op->image->active);

    if (!oldest || oldest->begun >= op->begun)
        return 0;
    return waitq_park(&op->image->older_gone, op);
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
    waitq_init(&work->range.waiters);
    op->work = work;
    return 0;
}

int op_bounce_wait(struct op *op)
{
    struct image *image = op->image;

    return image->bounce_bytes < OP_BOUNCE_BYTES_MAX ? 0 : waitq_park(&image->bounce_room, op);
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

void op_finish(struct op *op, int result)
{
    assert(result <= 0);
    release_work(op);
    op_leave_active(op);
    if (result < 0 && op->lender)
        op_give_back(op);
    op->result = result;
    op->task.run = tell_owner;
    runq_post(op->image->runq, &op->task);
}

static void io_ended(struct file_io *io)
{
    struct op *op = (struct op *)((char *)io - offsetof(struct op, io));

    op->wait_result = io->result;
    op->step(op);
}

void op_submit_to(struct op *op, struct file *file, enum file_io_kind kind, uint64_t offset,
                  uint64_t length, const struct iovec *iov, int iovcnt)
{
    op->io.kind = kind;
    op->io.offset = offset;
    op->io.length = length;
    op->io.iov = iov;
    op->io.iovcnt = iovcnt;
    op->io.lend = kind == FILE_READ && lease_possible(op, file);
    op->io.done = io_ended;
    file_submit(file, &op->io);
}

void op_submit(struct op *op, enum file_io_kind kind, uint64_t offset, uint64_t length,
               const struct iovec *iov, int iovcnt)
{
    op_submit_to(op, op->image->file, kind, offset, length, iov, iovcnt);
}

static void child_done(struct op *child)
{
    struct op *op = ((struct op_work *)((char *)child - offsetof(struct op_work, child)))->parent;

    op->wait_result = child->result;
    op->step(op);
}

void op_start_child(struct op *op, struct image *image, const struct op *child)
{
    op_leave_active(op);
    op->work->child = *child;
    op->work->child.done = child_done;
    op_start(image, &op->work->child);
}
