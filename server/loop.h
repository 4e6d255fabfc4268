// SPDX-License-Identifier: Apache-2.0
// loop.h: the one thread's loop. A turn: wait for descriptors, let their callbacks start ops, run
// the engine's queue and the file backend until both are quiet, then let the owner send replies.
// So whatever came in one turn goes to the kernel together, and so do the answers, but for those of
// many reads, which leave in rounds (client.h).
#ifndef LAZYCOW_SERVER_LOOP_H
#define LAZYCOW_SERVER_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "qcow2/base/error.h"
#include "qcow2/base/runq.h"
#include "server/file_backend.h"
#include "server/loop_spin.h"

// Milliseconds between ticks; nothing that is done by ticks needs to be more exact.
#define LOOP_TICK_MS 1000

// What happened in a turn of the owner, as bits.
enum loop_turn {
    LOOP_MORE = 1,       // it started something, or has more to do
    LOOP_RECEIVED = 2,   // something came from a client since the last turn
    LOOP_OVERLAPPED = 4, // something came from a client while requests were in flight
    LOOP_SENT = 8,       // something was sent to one
    LOOP_PEEKED = 16,    // bytes of a request were taken from its socket only now
};

// What the loop does behind a turn.
enum loop_wait {
    LOOP_SLEEPS,  // until a descriptor is ready
    LOOP_LOOKS,   // again and again: the next request is expected soon (loop_spin.h)
    LOOP_GOES_ON, // at once: work is left
};

struct loop_owner {
    void *context;
    // Sends what is to be sent. Returns bits of enum loop_turn.
    unsigned (*turn)(void *context);
    // SIGTERM or SIGINT came.
    void (*signalled)(void *context);
    // SIGUSR1 came.
    void (*dump)(void *context);
    // SIGHUP came.
    void (*hung_up)(void *context);
    // About once a second; now is in milliseconds. Returns whether it wants to be called again.
    bool (*tick)(void *context, uint64_t now);
};

struct loop {
    uv_loop_t uv;
    struct runq *runq;
    struct backend *backend;
    struct loop_owner owner;
    uv_poll_t backend_poll;
    uv_poll_t signal_poll;
    uv_check_t check; // runs the turn, behind the poll
    uv_idle_t again;  // active while the poll is not to wait
    enum loop_wait wait;
    unsigned looks; // how often it was LOOP_LOOKS since replies were sent
    unsigned alone; // how often in a row something came while nothing was in flight
    // When something last came while requests were in flight, nanoseconds of uv_hrtime().
    uint64_t overlapped_at;
    struct loop_spin spin;
    long displaced; // how often others took the processor, when that was last asked
    uv_timer_t timer;
    int signal_fd;
};

// Blocks the signals that the server answers to, for this thread and those it starts, and returns a
// descriptor that they are read from; a negative errno on failure. To be called before anything
// else, so that a signal at any moment is neither lost nor fatal.
int loop_block_signals(void);

// All are borrowed; signal_fd is what loop_block_signals() returned, poll_max_ns is for loop_spin_init().
// Returns 0, or a negative errno with a message.
int loop_init(struct loop *loop, struct runq *runq, struct backend *backend, int signal_fd,
              uint64_t poll_max_ns, const struct loop_owner *owner, struct error *err);

// Runs until loop_stop().
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

// Closes the handles; those of others on loop->uv must be closing or closed.
void loop_close(struct loop *loop);

// Starts the ticks, if they do not run.
void loop_want_tick(struct loop *loop);

#endif
