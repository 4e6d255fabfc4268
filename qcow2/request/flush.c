// SPDX-License-Identifier: Apache-2.0
// flush.c: OP_FLUSH, which only waits for a sync.
#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"
#include "qcow2/durable/sync.h"
#include "qcow2/request/request.h"
#include "qcow2/request/steps.h"

enum { FLUSH_BEGIN, FLUSH_SYNC };

static const char *const state_names[] = {
    [FLUSH_BEGIN] = "begin",
    [FLUSH_SYNC] = "sync",
};

static void flush_step(struct op *op)
{
    int result = op->wait.result;

    if (op->state == FLUSH_BEGIN && !op->image->read_only) {
        op->state = FLUSH_SYNC;
        result = sync_flush(op);
    }
    if (result != OP_PARKED)
        op_finish(op, result);
}

const struct op_machine flush_machine = OP_MACHINE("flush", flush_step, state_names);
