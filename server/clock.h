// SPDX-License-Identifier: Apache-2.0
// clock.h: the clock for modules that measure time. Rules about time (file_pace, loop_spin) get it
// as an argument, so that tests can set it.
#ifndef LAZYCOW_SERVER_CLOCK_H
#define LAZYCOW_SERVER_CLOCK_H

#include <stdint.h>
#include <time.h>

// Returns nanoseconds of CLOCK_MONOTONIC.
static inline uint64_t clock_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

#endif
