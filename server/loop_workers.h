// SPDX-License-Identifier: Apache-2.0
// loop_workers.h: runs computations on threads (qcow2/base/offload.h): the engine's, and handshakes
// of TLS.
#ifndef LAZYCOW_SERVER_LOOP_WORKERS_H
#define LAZYCOW_SERVER_LOOP_WORKERS_H

#include <stdbool.h>

#include "qcow2/base/error.h"
#include "qcow2/base/offload.h"
#include "qcow2/base/runq.h"

struct uv_loop_s;
struct threads;
struct loop_workers_poll;

// Must be zeroed but for runq; then jobs run at once, on the caller's thread. Outlives the jobs.
struct loop_workers {
    struct runq *runq;
    struct threads *threads;
    // Set while a loop watches the threads; NULL: jobs run at once.
    struct loop_workers_poll *poll;
    unsigned running; // jobs whose task was not posted yet
};

// Starts the first thread, so that a host that allows none reports it before anything is served.
// Returns 0, or a negative errno with a message.
int loop_workers_open(struct loop_workers *workers, struct error *err);
void loop_workers_close(struct loop_workers *workers);

// From now on jobs go to threads, and the loop posts their tasks. Returns 0 or a negative errno.
int loop_workers_attach(struct loop_workers *workers, struct uv_loop_s *loop);

// Waits for the running jobs and posts their tasks. The loop must run once more before it ends.
void loop_workers_detach(struct loop_workers *workers);

// loop_workers_give() gives a job to a thread before there is a loop; loop_workers_wait() waits for
// all such jobs and posts their tasks.
void loop_workers_give(struct loop_workers *workers, struct offload_job *job);
void loop_workers_wait(struct loop_workers *workers);

// Runs the job's work on a thread, then posts its task.
void loop_workers_run(struct loop_workers *workers, struct offload_job *job);

#endif
