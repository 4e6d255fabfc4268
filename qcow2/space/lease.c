// SPDX-License-Identifier: Apache-2.0
#include "qcow2/space/lease.h"

#include <assert.h>

#include "qcow2/engine.h"

bool lease_possible(const struct op *op, const struct file *file)
{
    // The last place is for data that is not lent, which all that follows can be joined to.
    return (op->flags & OP_LEND) && op->extent_count + 1 < op->max_extents &&
           (!op->lender || op->lender == file);
}

void lease_note(struct op *op, struct file *file)
{
    struct image *image = op->image;
    struct op *before;

    if (op->lender)
        return;
    op->lender = file;
    op->leased = op->begun;
    TAILQ_FOREACH_REVERSE(before, &image->leases, lease_list, lease_link)
    {
        if (before->leased <= op->leased) {
            TAILQ_INSERT_AFTER(&image->leases, before, op, lease_link);
            return;
        }
    }
    TAILQ_INSERT_HEAD(&image->leases, op, lease_link);
}

bool lease_older_than(const struct image *image, uint64_t begun)
{
    const struct op *oldest = TAILQ_FIRST(&image->leases);

    return oldest && oldest->leased < begun;
}

bool op_copy_lent(struct op *op)
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
    return true;
}

void op_give_back(struct op *op)
{
    struct image *image = op->image;

    assert(op->lender);
    for (size_t i = 0; i < op->extent_count; i++) {
        const struct extent *extent = &op->extents[i];

        if (extent->lent)
            op->lender->ops->give_back(op->lender, extent->lent, extent->length);
    }
    bool first = op == TAILQ_FIRST(&image->leases);

    op->lender = NULL;
    TAILQ_REMOVE(&image->leases, op, lease_link);
    if (first) {
        quarantine_kick(image);
        waitq_wake(&image->lease_ended, 0);
    }
}
