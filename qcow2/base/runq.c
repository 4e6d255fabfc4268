// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/runq.h"

#include <assert.h>

void runq_init(struct runq *rq)
{
    STAILQ_INIT(&rq->tasks);
    rq->count = 0;
}

void runq_post(struct runq *rq, struct task *task)
{
    assert(!task->queued);
    task->queued = true;
    STAILQ_INSERT_TAIL(&rq->tasks, task, link);
    rq->count++;
}

bool runq_empty(const struct runq *rq)
{
    return rq->count == 0;
}

bool runq_run(struct runq *rq)
{
    size_t budget = rq->count;
    bool ran = budget > 0;

    while (budget-- > 0 && rq->count > 0) {
        struct task *task = STAILQ_FIRST(&rq->tasks);

        STAILQ_REMOVE_HEAD(&rq->tasks, link);
        rq->count--;
        task->queued = false;
        task->run(task);
    }
    return ran;
}
