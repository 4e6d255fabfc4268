// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/waitq.h"

#include "qcow2/engine.h"

void waitq_init(struct waitq *q)
{
    TAILQ_INIT(&q->ops);
}

int waitq_park(struct waitq *q, struct op *op)
{
    op_leave_active(op);
    TAILQ_INSERT_TAIL(&q->ops, op, wait_link);
    return OP_PARKED;
}

void waitq_wake(struct waitq *q, int error)
{
    struct op *op;

    while ((op = TAILQ_FIRST(&q->ops)) != NULL) {
        TAILQ_REMOVE(&q->ops, op, wait_link);
        op->wait_result = error;
        op_post(op);
    }
}

void waitq_move(struct waitq *to, struct waitq *from)
{
    TAILQ_CONCAT(&to->ops, &from->ops, wait_link);
}
