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
struct workers_poll;

// Zero it but for runq: then jobs run at once, on the caller's thread. Outlives the jobs.
struct workers {
    struct runq *runq;
    struct threads *threads;
    struct workers_poll *poll; // while a loop looks after the threads; NULL: work is done at once
    unsigned running;          // jobs whose task was not posted yet
};

// Starts the first thread, so that a host without one says so before anything is served. Returns 0,
// or a negative errno with a message.
int workers_open(struct workers *workers, struct error *err);
void workers_close(struct workers *workers);

// From now on jobs go to threads, and the loop has their tasks posted. Returns 0 or a negative errno.
int workers_attach(struct workers *workers, struct uv_loop_s *loop);

// Waits for the jobs that run and posts their tasks. The loop has to run once more before it ends.
void workers_detach(struct workers *workers);

// Gives the job to a thread before there is a loop, and waits for all such jobs; their tasks are
// posted then.
void workers_give(struct workers *workers, struct offload_job *job);
void workers_wait(struct workers *workers);

// Runs the job's work on a thread, then posts its task.
void workers_run(struct workers *workers, struct offload_job *job);

#endif
