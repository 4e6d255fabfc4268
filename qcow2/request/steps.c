// SPDX-License-Identifier: Apache-2.0
#include "qcow2/request/steps.h"

#include "qcow2/base/op.h"

void (*const request_steps[])(struct op *op) = {
    [OP_READ] = read_step,         [OP_WRITE] = write_step, [OP_DISCARD] = zero_step,
    [OP_WRITE_ZEROES] = zero_step, [OP_FLUSH] = flush_step, [OP_BLOCK_STATUS] = status_step,
};
