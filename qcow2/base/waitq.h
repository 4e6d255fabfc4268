// SPDX-License-Identifier: Apache-2.0
// waitq.h: ops that wait for one thing. Whoever is woken plans again from scratch.
#ifndef LAZYCOW_QCOW2_BASE_WAITQ_H
#define LAZYCOW_QCOW2_BASE_WAITQ_H

#include <stddef.h>
#include <sys/queue.h>

struct op;

struct waitq {
    TAILQ_HEAD(, op) ops;
};

// What a function answers that has parked the op: the caller returns to the run queue at once.
#define OP_PARKED 1

void waitq_init(struct waitq *q);
// Parks the op. Returns OP_PARKED, so that one can say `return waitq_park(q, op);`.
int waitq_park(struct waitq *q, struct op *op);
// Wakes all in the order in which they came; a negative error ends them with that result.
void waitq_wake(struct waitq *q, int error);
// Moves all of from behind those of to.
void waitq_move(struct waitq *to, struct waitq *from);

#endif
