// SPDX-License-Identifier: Apache-2.0
// steps.h: the machine of each kind of request.
#ifndef LAZYCOW_QCOW2_REQUEST_STEPS_H
#define LAZYCOW_QCOW2_REQUEST_STEPS_H

struct op_machine;

// Indexed by enum op_kind.
extern const struct op_machine *const request_machines[];

extern const struct op_machine read_machine;
extern const struct op_machine write_machine;
extern const struct op_machine discard_machine;
extern const struct op_machine zero_machine;
extern const struct op_machine flush_machine;
extern const struct op_machine status_machine;

#endif
