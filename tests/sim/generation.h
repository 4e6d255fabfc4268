// SPDX-License-Identifier: Apache-2.0
// generation.h: a generation opens the image, lets guests work on it, and ends well or by a power
// cut.
#ifndef LAZYCOW_TESTS_SIM_GENERATION_H
#define LAZYCOW_TESTS_SIM_GENERATION_H

#include <stdbool.h>

#include "tests/sim/run.h"

// Returns true when the image was closed cleanly. (The power may still go: the last writes need not
// be durable.) No request is in flight any more. sim.failure has the failure, if there was one.
bool generation_run(struct run *run, const struct scenario_generation *g);

#endif
