// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/op.h"

#include "qcow2/base/container.h"

void op_take_turn(struct task *task)
{
    struct op *op = container_of(task, struct op, wait.task);

    op->step(op);
}

void op_init(struct op *op, struct image *image, struct runq *runq, void (*step)(struct op *op))
{
    *op = (struct op){
        .image = image, .wait = {.task = {.run = op_take_turn}, .runq = runq}, .step = step};
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
    op->step(op);
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
