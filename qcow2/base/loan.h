// SPDX-License-Identifier: Apache-2.0
// loan.h: bytes of the file that a read has left where they are (OP_LEND), until its owner settles or
// returns the loan. The op is done by then, and its plan has left its epoch, so the loan is a member
// of epochs of its own, in the epoch of the plan: no host cluster that is lent becomes another one's.
//
// Lent bytes are the file's content at any time: a write that the read overlaps may show. Looking at
// them may end with SIGBUS, or EFAULT of a system call, when the file was cut or cannot be read.
#ifndef LAZYCOW_QCOW2_BASE_LOAN_H
#define LAZYCOW_QCOW2_BASE_LOAN_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/op.h"

// True when a read may have more of this file lent: there is room to note it, and nothing is lent
// from another file.
bool loan_possible(const struct op *op, const struct file *file);

// Notes that the op's I/O has left its bytes in the file. The op is inside its plan's epoch.
void loan_take(struct op *op, struct epochs *loans);

// For the owner of an op that is done and has op->lender. Exactly one of the two ends the loan.
//
// Copies what is lent to its place in buf and returns the loan. Answers false when the bytes cannot
// be had any more; the loan then still stands.
bool loan_settle(struct op *op);
// None of the lent bytes are used any more.
void loan_return(struct op *op);

#endif
