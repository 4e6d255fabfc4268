// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/grace.h"

#include "qcow2/base/op.h"

void grace_init(struct grace *grace, void (*settle)(void *context), void *context)
{
    epochs_init(&grace->plans, "older plans to end");
    epochs_init(&grace->holders, "replies that hold older clusters");
    grace->settle = settle;
    grace->context = context;
}

uint64_t grace_stamp(const struct grace *grace)
{
    return epoch_now(&grace->plans);
}

int grace_wait_plans(struct op *op, struct grace *grace, uint64_t stamp)
{
    return epoch_passed(&grace->plans, stamp) ? 0 : op_park(op, &grace->plans.oldest_left);
}

bool grace_over(const struct grace *grace, uint64_t stamp)
{
    return epoch_passed(&grace->plans, stamp) && epoch_passed(&grace->holders, stamp);
}

bool grace_held(const struct grace *grace, uint64_t stamp)
{
    return epoch_passed(&grace->plans, stamp) && !epoch_passed(&grace->holders, stamp);
}

int grace_wait(struct op *op, struct grace *grace, uint64_t stamp)
{
    if (grace_wait_plans(op, grace, stamp) == OP_PARKED)
        return OP_PARKED;
    if (epoch_passed(&grace->holders, stamp))
        return 0;
    grace->settle(grace->context);
    return op_park(op, &grace->holders.oldest_left);
}
