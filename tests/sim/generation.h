// SPDX-License-Identifier: Apache-2.0
// generation.h: the image is opened, guests work on it, and it ends well or by a power cut.
#ifndef LAZYCOW_TESTS_SIM_GENERATION_H
#define LAZYCOW_TESTS_SIM_GENERATION_H

#include <stdbool.h>

#include "tests/sim/run.h"

// Returns whether the image was closed cleanly (the power may go yet: what was written last need
// not be durable). Nothing is in flight any more; sim.failure says what went wrong.
bool generation_run(struct run *run, const struct scenario_generation *g);

#endif
