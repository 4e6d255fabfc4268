// SPDX-License-Identifier: Apache-2.0
// loop.h: the loop of the server's thread. A turn waits for descriptors, lets their callbacks start
// ops, runs the engine's queue and the file backend until both are quiet, then lets the owner send
// replies. So the requests of one turn go to the kernel together, and so do the replies; only those
// of many reads leave in rounds (client.h).
#ifndef LAZYCOW_SERVER_LOOP_H
#define LAZYCOW_SERVER_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "qcow2/base/error.h"
#include "qcow2/base/runq.h"
#include "server/file_backend.h"
#include "server/loop_spin.h"

// Milliseconds between ticks; the work of ticks needs no finer time.
#define LOOP_TICK_MS 1000

// Events of a turn of the owner, as bits.
enum loop_turn {
    // The turn started an op, or has more to do.
    LOOP_MORE = 1,
    // Bytes came from a client since the last turn.
    LOOP_RECEIVED = 2,
    // Bytes came from a client while requests were in flight.
    LOOP_OVERLAPPED = 4,
    // Bytes were sent to a client.
    LOOP_SENT = 8,
    // Bytes of a request that was acted on were taken from the socket only now.
    LOOP_PEEKED = 16,
};

// The loop's behaviour after a turn.
enum loop_wait {
    // Sleeps until a descriptor is ready.
    LOOP_SLEEPS,
    // Polls again and again, because the next request is expected soon (loop_spin.h).
    LOOP_LOOKS,
    // Continues at once, because work is left.
    LOOP_GOES_ON,
};

struct loop_owner {
    void *context;
    // Sends the output. Returns bits of enum loop_turn.
    unsigned (*turn)(void *context);
    // SIGTERM or SIGINT came.
    void (*signalled)(void *context);
    // SIGUSR1 came.
    void (*dump)(void *context);
    // SIGHUP came.
    void (*hung_up)(void *context);
    // Runs about once a second; now is in milliseconds. Returns true if it wants to be called
    // again.
    bool (*tick)(void *context, uint64_t now);
};

struct loop {
    uv_loop_t uv;
    struct runq *runq;
    struct backend *backend;
    struct loop_owner owner;
    uv_poll_t backend_poll;
    uv_poll_t signal_poll;
    // Runs the turn after each poll.
    uv_check_t check;
    // Active while the poll must not wait.
    uv_idle_t again;
    enum loop_wait wait;
    // Times that wait was LOOP_LOOKS since replies were sent.
    unsigned looks;
    // Requests in a row that came while nothing was in flight.
    unsigned alone;
    // Time when bytes last came while requests were in flight, nanoseconds of uv_hrtime().
    uint64_t overlapped_at;
    struct loop_spin spin;
    // Times that other threads had taken the processor at the last check.
    long displaced;
    uv_timer_t timer;
    int signal_fd;
};

// Blocks the signals that the server handles, for this thread and the threads that it starts.
// Returns a descriptor to read them from, or a negative errno. Called before anything else, so that
// a signal at any moment is neither lost nor fatal.
int loop_block_signals(void);

// All pointers are borrowed. signal_fd is the result of loop_block_signals(); poll_max_ns is for
// loop_spin_init(). Returns 0, or a negative errno with a message.
int loop_init(struct loop *loop, struct runq *runq, struct backend *backend, int signal_fd,
              uint64_t poll_max_ns, const struct loop_owner *owner, struct error *err);

// Runs until loop_stop().
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

// Closes the loop's handles; all others on loop->uv must be closing or closed.
void loop_close(struct loop *loop);

// Starts the ticks if they are not running.
void loop_want_tick(struct loop *loop);

#endif
