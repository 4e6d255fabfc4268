// SPDX-License-Identifier: Apache-2.0
// loop_spin.h: decides whether an idle loop keeps looking for a request for a while or sleeps at
// once. A wake takes longer than a small request: a client that sends the next request as soon as
// it has its reply is served faster by a loop that is still awake. The loop looks only as long as
// that pays, and never for longer than a request is worth waiting for.
//
// Plain data and rules; the caller passes the time. Times are nanoseconds of one monotonic clock.
#ifndef LAZYCOW_SERVER_LOOP_SPIN_H
#define LAZYCOW_SERVER_LOOP_SPIN_H

#include <stdbool.h>
#include <stdint.h>

// Longest time to look after replies were sent, in nanoseconds. It is some three times what a
// client on this host needs to wake, act and send, also on a virtual processor that is slow to
// wake. A request that comes later loses little by a sleep.
#define LOOP_SPIN_DEFAULT_NS 100000u
// Largest time that the user can choose: beyond it, a processor is wasted.
#define LOOP_SPIN_LIMIT_NS 1000000u

// State of the loop in the time from replies to the next request.
enum loop_spin_gap {
    // So far the loop has looked, or had other work.
    LOOP_SPIN_AWAKE,
    // It has slept.
    LOOP_SPIN_SLEPT,
    // It has slept because other threads wanted the processor.
    LOOP_SPIN_DISPLACED,
};

struct loop_spin {
    // Longest time to look; 0: never.
    uint64_t max_ns;
    // Time when replies were last sent; 0: a request has come since.
    uint64_t since;
    // Looking pays at present.
    bool on;
    enum loop_spin_gap gap;
    // Balance of recent hits and misses; looking ends when it is used up.
    int credit;
    // Number of recent sleeps that a request ended sooner than looking would have, and the number
    // at which looking is turned on.
    unsigned short_sleeps;
    unsigned short_sleeps_needed;
};

void loop_spin_init(struct loop_spin *spin, uint64_t max_ns);

// Takes in that replies were sent.
void loop_spin_replied(struct loop_spin *spin, uint64_t now);

// Takes in that bytes were received.
void loop_spin_received(struct loop_spin *spin, uint64_t now);

// Called when there is nothing to do. Returns true to look again soon, false to sleep.
bool loop_spin_look(struct loop_spin *spin, uint64_t now);

// Takes in that other threads want the processor: looking takes it from them, and perhaps from the
// client itself.
void loop_spin_crowded(struct loop_spin *spin);

#endif
