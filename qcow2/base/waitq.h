// SPDX-License-Identifier: Apache-2.0
// waitq.h: waiters for one event, in the order in which they came. A wait queue touches nothing but
// its waiters and their run queue.
#ifndef LAZYCOW_QCOW2_BASE_WAITQ_H
#define LAZYCOW_QCOW2_BASE_WAITQ_H

#include <stdbool.h>
#include <sys/queue.h>

#include "qcow2/base/runq.h"

// Embedded in its owner, which sets task.run and runq once. It is in at most one queue at a time.
struct waiter {
    struct task task;
    struct runq *runq; // borrowed
    int result;        // how the last wait ended: 0 or a negative errno
    const char *event; // what it waits for, a constant; NULL: it is in no queue
    TAILQ_ENTRY(waiter) link;
};

struct waitq {
    const char *event;
    TAILQ_HEAD(, waiter) waiters;
};

// event is a constant, for a dump: a noun such as "an L2 slice".
void waitq_init(struct waitq *q, const char *event);
bool waitq_empty(const struct waitq *q);
// Appends the waiter.
void waitq_add(struct waitq *q, struct waiter *waiter);
// Removes all waiters, sets their result (0 or a negative errno) and posts their tasks, in order.
void waitq_wake(struct waitq *q, int result);
// Moves all waiters of from behind those of to.
void waitq_move(struct waitq *to, struct waitq *from);

#endif
