// SPDX-License-Identifier: Apache-2.0
#include "qcow2/space/reserve.h"

#include <assert.h>
#include <errno.h>

#include "qcow2/base/container.h"
#include "qcow2/base/op.h"

void reserve_init(struct reserve *reserve, struct file *file, uint64_t end)
{
    *reserve =
        (struct reserve){.way = file->fresh_is_zero ? RESERVE_BY_ALLOCATING : RESERVE_NOTHING,
                         .end = end,
                         .file = file};
    waitq_init(&reserve->waiters, "space to be reserved");
}

static void reserve_ended(struct file_io *io)
{
    struct reserve *reserve = container_of(io, struct reserve, io);
    int result = io->result;

    assert(reserve->state == RESERVE_AHEAD || reserve->state == RESERVE_EXACT);
    if (result == 0) {
        reserve->end = io->offset + io->length;
        reserve->state = RESERVE_IDLE;
    } else if (result == -EOPNOTSUPP || result == -EINVAL) {
        reserve->way = io->kind == FILE_ALLOCATE ? RESERVE_BY_GROWING : RESERVE_NOTHING;
        reserve->state = RESERVE_IDLE;
    } else if (reserve->state == RESERVE_AHEAD) {
        // The host may have room for the bytes that are needed, if not for the whole step.
        reserve->state = RESERVE_SHORT;
    } else {
        reserve->error = result;
        reserve->state = RESERVE_FAILED;
    }
    waitq_wake(&reserve->waiters, 0);
}

static uint64_t step_ahead(const struct reserve *reserve)
{
    uint64_t step = reserve->end / 8;

    if (step < RESERVE_STEP_MIN)
        return RESERVE_STEP_MIN;
    return step < RESERVE_STEP_MAX ? step : RESERVE_STEP_MAX;
}

static void reserve_ask(struct reserve *reserve, uint64_t end)
{
    if (reserve->way == RESERVE_BY_GROWING)
        reserve->io = (struct file_io){.kind = FILE_TRUNCATE, .offset = end};
    else
        reserve->io = (struct file_io){
            .kind = FILE_ALLOCATE, .offset = reserve->end, .length = end - reserve->end};
    reserve->io.done = reserve_ended;
    file_submit(reserve->file, &reserve->io);
}

int reserve_wait(struct op *op, struct reserve *reserve, uint64_t end)
{
    if (reserve->way == RESERVE_NOTHING || end <= reserve->end)
        return 0;
    switch (reserve->state) {
    case RESERVE_FAILED:
        // Only the first op sees the error; later ones ask again.
        reserve->state = RESERVE_IDLE;
        return reserve->error;
    case RESERVE_IDLE:
        reserve->state = RESERVE_AHEAD;
        reserve_ask(reserve, end + step_ahead(reserve));
        break;
    case RESERVE_SHORT:
        reserve->state = RESERVE_EXACT;
        reserve_ask(reserve, end);
        break;
    case RESERVE_AHEAD:
    case RESERVE_EXACT:
        break;
    }
    return op_park(op, &reserve->waiters);
}
