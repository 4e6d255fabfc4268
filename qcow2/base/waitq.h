// SPDX-License-Identifier: Apache-2.0
// waitq.h: waiters for one event, in order of arrival. A wait queue touches nothing but its waiters
// and their run queue.
#ifndef LAZYCOW_QCOW2_BASE_WAITQ_H
#define LAZYCOW_QCOW2_BASE_WAITQ_H

#include <stdbool.h>
#include <sys/queue.h>

#include "qcow2/base/runq.h"

// Embedded in its owner, which sets task.run and runq once. A waiter is in at most one queue at a
// time.
struct waiter {
    struct task task;
    struct runq *runq; // borrowed
    // How the last wait ended: 0 or a negative errno.
    int result;
    // Name of the event that it waits for, a constant; NULL: it is in no queue.
    const char *event;
    TAILQ_ENTRY(waiter) link;
};

struct waitq {
    const char *event;
    TAILQ_HEAD(, waiter) waiters;
};

// event names the awaited event in a dump: a constant noun such as "an L2 slice".
void waitq_init(struct waitq *q, const char *event);
bool waitq_empty(const struct waitq *q);
// Appends the waiter.
void waitq_add(struct waitq *q, struct waiter *waiter);
// Removes all waiters, sets their result (0 or a negative errno) and posts their tasks in order.
void waitq_wake(struct waitq *q, int result);
// Appends all waiters of from to to.
void waitq_move(struct waitq *to, struct waitq *from);

#endif
