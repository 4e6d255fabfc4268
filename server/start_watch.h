// SPDX-License-Identifier: Apache-2.0
// start_watch.h: handles SIGTERM and SIGINT before the loop runs. Opening an image can take for
// ever on a file system that hangs, and so can finding an address. Nothing is changed by then, so
// the process just ends, with the exit code of a stop in good order.
#ifndef LAZYCOW_SERVER_START_WATCH_H
#define LAZYCOW_SERVER_START_WATCH_H

#include "qcow2/base/error.h"
#include "qcow2/base/offload.h"

struct loop_workers;

// Must be zeroed before use. Lives until start_watch_end().
struct start_watch {
    // NULL: it is not watching.
    struct loop_workers *workers;
    struct offload_job job;
    int signal_fd;
    int end_fd;
};

// Watches on one of the workers' threads, which are idle meanwhile. Both signals must be blocked.
// Returns 0, or a negative errno with a message.
int start_watch_begin(struct start_watch *watch, struct loop_workers *workers, struct error *err);

// From now on the signals wait for the loop. Called before the first change that a stop would have
// to undo; further calls do nothing.
void start_watch_end(struct start_watch *watch);

#endif
