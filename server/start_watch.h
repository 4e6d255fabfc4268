// SPDX-License-Identifier: Apache-2.0
// start_watch.h: SIGTERM and SIGINT before the loop runs. Opening an image can take for ever, on a
// file system that hangs, and so can finding an address. Nothing is changed by then: the process
// just ends, with the exit code of a stop in good order.
#ifndef LAZYCOW_SERVER_START_WATCH_H
#define LAZYCOW_SERVER_START_WATCH_H

#include "qcow2/base/error.h"
#include "qcow2/base/offload.h"

struct loop_workers;

// Zero it. Lives until start_watch_end().
struct start_watch {
    struct loop_workers *workers; // NULL: not watching
    struct offload_job job;
    int signal_fd;
    int end_fd;
};

// Watches from one of the workers' threads, which have nothing else to do meanwhile. Both signals are
// blocked. Returns 0, or a negative errno with a message.
int start_watch_begin(struct start_watch *watch, struct loop_workers *workers, struct error *err);

// From here on the signals wait for the loop. To be called before anything is changed that would
// have to be removed; does nothing when it was called before.
void start_watch_end(struct start_watch *watch);

#endif
