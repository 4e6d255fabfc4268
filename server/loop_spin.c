// SPDX-License-Identifier: Apache-2.0
#include "server/loop_spin.h"

// Credit of a hit; a miss costs CREDIT_MISS. A hit saves two switches and a wake, some 20 us; a
// miss costs the whole time, up to 100 us of a processor. So spinning goes on while more than three
// of four looks are hits.
#define CREDIT_HIT 1
#define CREDIT_MISS 3
// Largest credit: eight misses in a row end spinning, or a single one soon after it began.
#define CREDIT_MAX (8 * CREDIT_MISS)
// Short sleeps after which spinning is tried, at first; the number doubles after each failure. A
// long sleep cancels four, so spinning begins only if more than four of five sleeps are short.
#define SHORT_SLEEPS_MIN 4u
#define SHORT_SLEEPS_MAX 1024u
#define LONG_SLEEP_COST 4u
// Nanoseconds that a short sleep may last beyond the longest look, for two wakes: of the client by
// the reply, and of this thread by the request. An idle virtual processor takes 20 to 50 us for a
// wake.
#define WAKES_NS 100000u

void loop_spin_init(struct loop_spin *spin, uint64_t max_ns)
{
    *spin = (struct loop_spin){.max_ns = max_ns, .short_sleeps_needed = SHORT_SLEEPS_MIN};
}

static void turn_off(struct loop_spin *spin)
{
    spin->on = false;
    spin->short_sleeps = 0;
    spin->short_sleeps_needed = spin->short_sleeps_needed < SHORT_SLEEPS_MAX
                                    ? spin->short_sleeps_needed * 2
                                    : SHORT_SLEEPS_MAX;
}

static void turn_on(struct loop_spin *spin)
{
    spin->on = true;
    spin->credit = CREDIT_MISS;
}

void loop_spin_replied(struct loop_spin *spin, uint64_t now)
{
    spin->since = now;
    spin->gap = LOOP_SPIN_AWAKE;
}

// Takes in that no request came while the loop looked.
static void missed(struct loop_spin *spin)
{
    spin->credit -= CREDIT_MISS;
    if (spin->credit < 0) {
        turn_off(spin);
    }
}

static void found(struct loop_spin *spin)
{
    spin->credit += spin->on && spin->credit < CREDIT_MAX ? CREDIT_HIT : 0;
    if (spin->credit == CREDIT_MAX) {
        spin->short_sleeps_needed = SHORT_SLEEPS_MIN;
    }
}

static void note_sleep(struct loop_spin *spin, uint64_t gap)
{
    if (gap > spin->max_ns + WAKES_NS) {
        spin->short_sleeps -=
            spin->short_sleeps < LONG_SLEEP_COST ? spin->short_sleeps : LONG_SLEEP_COST;
    } else if (++spin->short_sleeps >= spin->short_sleeps_needed) {
        turn_on(spin);
    }
}

void loop_spin_received(struct loop_spin *spin, uint64_t now)
{
    uint64_t gap = now - spin->since;

    if (spin->since == 0 || spin->max_ns == 0) {
        return;
    }
    spin->since = 0;
    if (spin->gap == LOOP_SPIN_AWAKE) {
        found(spin);
    } else if (spin->gap == LOOP_SPIN_DISPLACED && gap > spin->max_ns) {
        missed(spin);
    } else if (!spin->on) {
        note_sleep(spin, gap);
    }
}

bool loop_spin_look(struct loop_spin *spin, uint64_t now)
{
    if (spin->since == 0 || spin->gap != LOOP_SPIN_AWAKE) {
        return false;
    }
    if (!spin->on) {
        spin->gap = LOOP_SPIN_SLEPT;
        return false;
    }
    if (now - spin->since < spin->max_ns) {
        return true;
    }
    spin->gap = LOOP_SPIN_SLEPT;
    missed(spin);
    return false;
}

void loop_spin_crowded(struct loop_spin *spin)
{
    // If the client took the processor, its request is there now; if another thread did, the
    // request will be late.
    spin->gap = LOOP_SPIN_DISPLACED;
}
