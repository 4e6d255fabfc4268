// SPDX-License-Identifier: Apache-2.0
// limit.h: ends scenarios that do not progress. Counts processor time, because other programs may
// slow this one down.
#ifndef LAZYCOW_TESTS_SIM_LIMIT_H
#define LAZYCOW_TESTS_SIM_LIMIT_H

#include <sys/time.h>

#include "tests/memcheck.h"

// SIGVTALRM comes after so many seconds of processor time; 0: never.
static inline void limit_cpu(unsigned seconds)
{
    const struct itimerval timer = {
        .it_value = {.tv_sec = (time_t)(seconds * memcheck_slowness())}};

    setitimer(ITIMER_VIRTUAL, &timer, NULL);
}

#endif
