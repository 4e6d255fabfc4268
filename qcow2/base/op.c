// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/op.h"

#include <inttypes.h>
#include <stdio.h>

#include "qcow2/base/container.h"

void op_take_turn(struct task *task)
{
    struct op *op = container_of(task, struct op, wait.task);

    op->machine->step(op);
}

void op_init(struct op *op, struct image *image, struct runq *runq,
             const struct op_machine *machine)
{
    *op = (struct op){
        .image = image, .wait = {.task = {.run = op_take_turn}, .runq = runq}, .machine = machine};
}

void op_post(struct op *op)
{
    runq_post(op->wait.runq, &op->wait.task);
}

int op_park(struct op *op, struct waitq *q)
{
    epoch_leave(&op->plan);
    waitq_add(q, &op->wait);
    return OP_PARKED;
}

static void io_ended(struct file_io *io)
{
    struct op *op = container_of(io, struct op, io);

    op->wait.result = io->result;
    op->machine->step(op);
}

void op_submit(struct op *op, struct file *file, enum file_io_kind kind, uint64_t offset,
               uint64_t length, const struct iovec *iov, int iovcnt)
{
    op->io.kind = kind;
    op->io.offset = offset;
    op->io.length = length;
    op->io.iov = iov;
    op->io.iovcnt = iovcnt;
    op->io.done = io_ended;
    file_submit(file, &op->io);
}

const char *op_state_name(const struct op *op)
{
    const struct op_machine *machine = op->machine;
    const char *name =
        op->state >= 0 && op->state < machine->state_count ? machine->state_names[op->state] : NULL;

    return name ? name : "?";
}

static const char *const io_names[] = {
    [FILE_READ] = "read",         [FILE_WRITE] = "write",
    [FILE_DATASYNC] = "barrier",  [FILE_ZERO] = "zero",
    [FILE_PUNCH] = "punch",       [FILE_ALLOCATE] = "allocate",
    [FILE_TRUNCATE] = "truncate", [FILE_EXTENTS] = "look for holes",
};

void op_describe(const struct op *op, char *text, size_t size)
{
    int length =
        op->done ? snprintf(text, size,
                            "%s of %" PRIu64 " bytes at %" PRIu64 " (%" PRIu64 " done), state %s",
                            op->machine->name, op->length, op->offset, op->pos - op->offset,
                            op_state_name(op))
                 : snprintf(text, size, "%s, state %s", op->machine->name, op_state_name(op));

    if (length < 0 || (size_t)length >= size)
        return;
    text += length;
    size -= (size_t)length;
    if (op->wait.event)
        snprintf(text, size, ": waits for %s", op->wait.event);
    else if (op->wait.task.queued)
        snprintf(text, size, ": its turn is due");
    else if (op->io.result == FILE_IO_RUNNING && op->io.kind == FILE_DATASYNC)
        snprintf(text, size, ": waits for a barrier");
    else if (op->io.result == FILE_IO_RUNNING)
        snprintf(text, size, ": waits for a %s of %" PRIu64 " bytes at host offset %" PRIu64,
                 io_names[op->io.kind], op->io.length, op->io.offset);
}
