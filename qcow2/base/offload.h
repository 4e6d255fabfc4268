// SPDX-License-Identifier: Apache-2.0
// offload.h: pure computation (inflating) on another thread. The engine has no threads; its host
// may have some.
#ifndef LAZYCOW_QCOW2_BASE_OFFLOAD_H
#define LAZYCOW_QCOW2_BASE_OFFLOAD_H

#include "qcow2/base/runq.h"

// Embedded in its owner, which does not touch it from offload until task runs.
struct offload_job {
    // Runs once, on any thread. Touches only memory that the owner keeps for it alone.
    void (*work)(struct offload_job *job);
    // The owner sets task.run, which runs from the run queue after work has returned.
    struct task task;
};

#endif
