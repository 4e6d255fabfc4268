// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/waitq.h"

#include <assert.h>

void waitq_init(struct waitq *q, const char *event)
{
    q->event = event;
    TAILQ_INIT(&q->waiters);
}

bool waitq_empty(const struct waitq *q)
{
    return TAILQ_EMPTY(&q->waiters);
}

void waitq_add(struct waitq *q, struct waiter *waiter)
{
    // A waiter can only begin a wait when its last one is over and its task has run.
    assert(!waiter->task.queued && !waiter->event);
    waiter->event = q->event;
    TAILQ_INSERT_TAIL(&q->waiters, waiter, link);
}

void waitq_wake(struct waitq *q, int result)
{
    struct waiter *waiter;

    assert(result <= 0);
    while ((waiter = TAILQ_FIRST(&q->waiters)) != NULL) {
        TAILQ_REMOVE(&q->waiters, waiter, link);
        waiter->result = result;
        waiter->event = NULL;
        runq_post(waiter->runq, &waiter->task);
    }
}

void waitq_move(struct waitq *to, struct waitq *from)
{
    TAILQ_CONCAT(&to->waiters, &from->waiters, link);
}
