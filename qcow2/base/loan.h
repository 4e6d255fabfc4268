// SPDX-License-Identifier: Apache-2.0
// loan.h: bytes of the file that a read has left where they are (OP_LOAN).
//
//   none ──loan_take──> taken ──loan_settle, or loan_return──> none
//
// A read takes a loan for all of its extents that have data of their own. The op is done and its plan has
// left its epoch while its owner still uses the bytes. So the loan is a holder of the plan's epoch
// (grace.h): no host cluster that is on loan becomes another one's.
//
// Bytes on loan are the file's content at any time: a write that the read overlaps may show. Looking at
// them may end with SIGBUS, or EFAULT of a system call, when the file was cut or cannot be read.
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
    struct file *file; // that owns the bytes; NULL: there is no loan
    struct epoch_member holder;
};

// Notes that a read has left bytes in the file. Called for each I/O; all of them are on one file. epoch
// is that of the plan, which is still inside it.
void loan_take(struct loan *loan, struct file *file, struct epochs *holders, uint64_t epoch);

// Exactly one of the two ends a loan that was taken. extents are those of the op.
//
// Copies the bytes to their place in buf and returns the loan. Answers false when the bytes cannot be
// had any more; the loan then still stands.
bool loan_settle(struct loan *loan, const struct extent *extents, size_t count, void *buf);
// None of the bytes are used any more.
void loan_return(struct loan *loan, const struct extent *extents, size_t count);

#endif
