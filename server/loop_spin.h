// SPDX-License-Identifier: Apache-2.0
// loop_spin.h: whether the loop, with nothing to do, looks again for a while or sleeps at once. To be
// woken takes longer than a small request does: a client that sends the next one as soon as it has
// its reply is served faster by a loop that is still awake. That is tried only as long as it pays,
// and never for longer than a request is worth waiting for.
//
// Plain data and rules; the clock is the caller's. Times are nanoseconds of one monotonic clock.
#ifndef LAZYCOW_SERVER_LOOP_SPIN_H
#define LAZYCOW_SERVER_LOOP_SPIN_H

#include <stdbool.h>
#include <stdint.h>

// Longest time to look after replies were sent. Some three times what it takes a client on this
// host to be woken, to act and to send, also where a virtual processor is slow to wake; a request
// that comes later loses little by a sleep.
#define LOOP_SPIN_DEFAULT_NS 100000u
// Beyond this a processor is given away for nothing.
#define LOOP_SPIN_LIMIT_NS 1000000u

// The time from replies to the next request.
enum loop_spin_gap {
    LOOP_SPIN_AWAKE,     // so far the loop has looked, or had other work
    LOOP_SPIN_SLEPT,     // it has slept
    LOOP_SPIN_DISPLACED, // and that since others wanted the processor
};

struct loop_spin {
    uint64_t max_ns; // longest time to look; 0: never
    uint64_t since;  // when replies were last sent; 0: a request has come after them
    bool on;         // looking pays at present
    enum loop_spin_gap gap;
    int credit; // what looking has earned lately: it goes off when this is used up
    // Sleeps, lately, that a request ended sooner than looking would have; and how many turn it on.
    unsigned short_sleeps;
    unsigned short_sleeps_needed;
};

void loop_spin_init(struct loop_spin *spin, uint64_t max_ns);

// Replies were sent.
void loop_spin_replied(struct loop_spin *spin, uint64_t now);

// Something was received.
void loop_spin_received(struct loop_spin *spin, uint64_t now);

// There is nothing to do. Returns whether to look again soon rather than sleep.
bool loop_spin_look(struct loop_spin *spin, uint64_t now);

// Others want the processor: looking takes it from them, and perhaps from the very client.
void loop_spin_crowded(struct loop_spin *spin);

#endif
