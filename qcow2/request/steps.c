// SPDX-License-Identifier: Apache-2.0
#include "qcow2/request/steps.h"

#include "qcow2/base/op.h"

const struct op_machine *const request_machines[] = {
    [OP_READ] = &read_machine,       [OP_WRITE] = &write_machine,
    [OP_DISCARD] = &discard_machine, [OP_WRITE_ZEROES] = &zero_machine,
    [OP_FLUSH] = &flush_machine,     [OP_BLOCK_STATUS] = &status_machine,
};
