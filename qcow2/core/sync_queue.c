// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/sync_queue.h"

#include <assert.h>

#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/image_state.h"

void sync_queue_init(struct sync_queue *queue, struct op *sync)
{
    *queue = (struct sync_queue){.sync = sync};
    waitq_init(&queue->waiting, "a sync");
}

static void make_due(struct sync_queue *queue)
{
    queue->state = SYNC_QUEUE_DUE;
    queue->sync->wait.result = 0;
    op_post(queue->sync);
}

void sync_request(struct image *image)
{
    struct sync_queue *queue = &image->syncs;

    if (queue->state == SYNC_QUEUE_IDLE)
        make_due(queue);
    else if (queue->state == SYNC_QUEUE_RUNNING)
        queue->state = SYNC_QUEUE_RUNNING_DUE;
}

int sync_wait(struct op *op)
{
    sync_request(op->image);
    return op_park(op, &op->image->syncs.waiting);
}

void sync_note_write(struct image *image)
{
    image->syncs.demand.data = true;
}

void sync_note_answered(struct image *image, uint64_t bytes)
{
    image->syncs.demand.bytes += bytes;
}

void sync_need_barrier(struct image *image)
{
    image->syncs.demand.barrier = true;
}

struct sync_demand sync_queue_begin(struct sync_queue *queue, struct waitq *current)
{
    struct sync_demand demand = queue->demand;

    assert(queue->state == SYNC_QUEUE_DUE);
    queue->state = SYNC_QUEUE_RUNNING;
    queue->demand = (struct sync_demand){0};
    waitq_move(current, &queue->waiting);
    return demand;
}

void sync_queue_put_back(struct sync_queue *queue, struct sync_demand demand)
{
    queue->demand.data |= demand.data;
    queue->demand.barrier |= demand.barrier;
    queue->demand.bytes += demand.bytes;
}

void sync_queue_end(struct sync_queue *queue)
{
    assert(queue->state == SYNC_QUEUE_RUNNING || queue->state == SYNC_QUEUE_RUNNING_DUE);
    if (queue->state == SYNC_QUEUE_RUNNING_DUE)
        make_due(queue);
    else
        queue->state = SYNC_QUEUE_IDLE;
}
