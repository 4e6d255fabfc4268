// SPDX-License-Identifier: Apache-2.0
// shrink.h: searches for a shorter scenario that fails like a given one.
#ifndef LAZYCOW_TESTS_SIM_SHRINK_H
#define LAZYCOW_TESTS_SIM_SHRINK_H

#include <stdint.h>

#include "tests/sim/scenario.h"

// Prints the shortest scenario found, as a command line and its trace. Returns the exit code of the
// program.
int shrink(uint64_t seed, const struct scenario_limits *limits);

// Parses a list of op numbers and ranges, as in "3,5-7", for scenario_limits.skip. Returns static
// memory.
const bool *shrink_parse_skip(const char *text);

#endif
