// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/loan.h"

#include <assert.h>

bool loan_possible(const struct op *op, const struct file *file)
{
    // The last place is for data that is not lent, which all that follows can be joined to.
    return (op->flags & OP_LEND) && op->extent_count + 1 < op->max_extents &&
           (!op->lender || op->lender == file);
}

void loan_take(struct op *op, struct epochs *loans)
{
    assert(op->plan.inside && op->io.lent);
    // The first of its loans is the oldest, and keeps the others' clusters, too.
    if (op->lender)
        return;
    op->lender = op->io.file;
    epoch_enter_at(loans, &op->loan, op->plan.epoch);
}

bool loan_settle(struct op *op)
{
    char *to = op->buf;

    assert(op->lender);
    for (size_t i = 0; i < op->extent_count; i++) {
        const struct extent *extent = &op->extents[i];

        if (extent->lent &&
            !op->lender->ops->copy_lent(op->lender, to, extent->lent, (size_t)extent->length))
            return false;
        to += extent->length;
    }
    loan_return(op);
    return true;
}

void loan_return(struct op *op)
{
    assert(op->lender);
    for (size_t i = 0; i < op->extent_count; i++) {
        const struct extent *extent = &op->extents[i];

        if (extent->lent)
            op->lender->ops->give_back(op->lender, extent->lent, extent->length);
    }
    op->lender = NULL;
    epoch_leave(&op->loan);
}
