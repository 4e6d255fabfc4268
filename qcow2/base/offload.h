// SPDX-License-Identifier: Apache-2.0
// offload.h: pure computation (inflate) on another thread. The engine has no threads; who hosts it
// may have some.
#ifndef LAZYCOW_QCOW2_BASE_OFFLOAD_H
#define LAZYCOW_QCOW2_BASE_OFFLOAD_H

#include "qcow2/base/runq.h"

// Embedded in its owner, which leaves it alone until task runs.
struct offload_job {
    // Runs on any thread, once; touches nothing but what the owner keeps for it alone.
    void (*work)(struct offload_job *job);
    // Set task.run: it runs from the run queue after work has ended.
    struct task task;
};

#endif
