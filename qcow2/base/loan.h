// SPDX-License-Identifier: Apache-2.0
// loan.h: bytes of the file that a read leaves in place instead of copying them (OP_LOAN).
//
//   none ──loan_take──> taken ──loan_settle, or loan_return──> none
//
// A read has one loan for all of its extents with data of their own. The owner uses the bytes after
// the op is done and its plan has left its epoch. So the loan is a holder of the plan's epoch
// (grace.h), and no host cluster on loan is used again.
//
// Bytes on loan show the file's content at any moment: a write that the read overlaps may show.
// Reading them may end with SIGBUS, or with EFAULT of a system call, when the file was cut or
// cannot be read.
#ifndef LAZYCOW_QCOW2_BASE_LOAN_H
#define LAZYCOW_QCOW2_BASE_LOAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/epoch.h"
#include "qcow2/base/extent.h"

struct file;

// Embedded in an op; zero it before use.
struct loan {
    // The file that has lent the bytes; NULL: there is no loan.
    struct file *file;
    struct epoch_member holder;
};

// Notes that a read has left bytes in the file. Called for each I/O of the op, all of them on one
// file. epoch is that of the op's plan, which is still inside it.
void loan_take(struct loan *loan, struct file *file, struct epochs *holders, uint64_t epoch);

// Exactly one of loan_settle and loan_return ends a loan that was taken. extents are those of the
// op.
//
// Copies the bytes to their place in buf and returns the loan. Returns false when the bytes cannot
// be read any more; the loan then still stands.
bool loan_settle(struct loan *loan, const struct extent *extents, size_t count, void *buf);
// Ends the loan without copying: none of its bytes are used any more.
void loan_return(struct loan *loan, const struct extent *extents, size_t count);

#endif
