// SPDX-License-Identifier: Apache-2.0
// workers.h: computations (qcow2/base/offload.h) on libuv's worker threads: the engine's, and TLS's
// handshakes.
#ifndef LAZYCOW_SERVER_WORKERS_H
#define LAZYCOW_SERVER_WORKERS_H

#include "qcow2/base/offload.h"
#include "qcow2/base/runq.h"

struct uv_loop_s;

// Zero it but for runq. Outlives the jobs.
struct workers {
    struct runq *runq;
    struct uv_loop_s *loop; // set while it runs; NULL: work is done at once
};

// Runs the job's work on a thread, then posts its task.
void workers_run(struct workers *workers, struct offload_job *job);

#endif
