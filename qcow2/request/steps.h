// SPDX-License-Identifier: Apache-2.0
// steps.h: the step function of each kind of request.
#ifndef LAZYCOW_QCOW2_REQUEST_STEPS_H
#define LAZYCOW_QCOW2_REQUEST_STEPS_H

struct op;

// Indexed by enum op_kind.
extern void (*const request_steps[])(struct op *op);

void read_step(struct op *op);
void write_step(struct op *op);
void zero_step(struct op *op);
void flush_step(struct op *op);
void status_step(struct op *op);

#endif
