// SPDX-License-Identifier: Apache-2.0
// loop_workers.h: computations (qcow2/base/offload.h) on threads: the engine's, and TLS's handshakes.
#ifndef LAZYCOW_SERVER_LOOP_WORKERS_H
#define LAZYCOW_SERVER_LOOP_WORKERS_H

#include <stdbool.h>

#include "qcow2/base/error.h"
#include "qcow2/base/offload.h"
#include "qcow2/base/runq.h"

struct uv_loop_s;
struct threads;
struct loop_workers_poll;

// Zero it but for runq: then jobs run at once, on the caller's thread. Outlives the jobs.
struct loop_workers {
    struct runq *runq;
    struct threads *threads;
    struct loop_workers_poll
        *poll;        // while a loop looks after the threads; NULL: work is done at once
    unsigned running; // jobs whose task was not posted yet
};

// Starts the first thread, so that a host without one says so before anything is served. Returns 0,
// or a negative errno with a message.
int loop_workers_open(struct loop_workers *workers, struct error *err);
void loop_workers_close(struct loop_workers *workers);

// From now on jobs go to threads, and the loop has their tasks posted. Returns 0 or a negative errno.
int loop_workers_attach(struct loop_workers *workers, struct uv_loop_s *loop);

// Waits for the jobs that run and posts their tasks. The loop has to run once more before it ends.
void loop_workers_detach(struct loop_workers *workers);

// Gives the job to a thread before there is a loop, and waits for all such jobs; their tasks are
// posted then.
void loop_workers_give(struct loop_workers *workers, struct offload_job *job);
void loop_workers_wait(struct loop_workers *workers);

// Runs the job's work on a thread, then posts its task.
void loop_workers_run(struct loop_workers *workers, struct offload_job *job);

#endif
