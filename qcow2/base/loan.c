// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/loan.h"

#include <assert.h>

#include "qcow2/base/file.h"

void loan_take(struct loan *loan, struct file *file, struct epochs *holders, uint64_t epoch)
{
    assert(!loan->file || loan->file == file);
    // The op's first epoch is its oldest. It also protects the clusters of later reads of the op.
    if (loan->file)
        return;
    loan->file = file;
    epoch_enter_at(holders, &loan->holder, epoch);
}

bool loan_settle(struct loan *loan, const struct extent *extents, size_t count, void *buf)
{
    char *to = buf;

    assert(loan->file);
    for (size_t i = 0; i < count; i++) {
        const struct extent *extent = &extents[i];

        if (extent->data &&
            !loan->file->ops->loan_copy(loan->file, to, extent->data, (size_t)extent->length))
            return false;
        to += extent->length;
    }
    loan_return(loan, extents, count);
    return true;
}

void loan_return(struct loan *loan, const struct extent *extents, size_t count)
{
    assert(loan->file);
    for (size_t i = 0; i < count; i++) {
        if (extents[i].data)
            loan->file->ops->loan_return(loan->file, extents[i].data, extents[i].length);
    }
    loan->file = NULL;
    epoch_leave(&loan->holder);
}
