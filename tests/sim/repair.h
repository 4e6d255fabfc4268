// SPDX-License-Identifier: Apache-2.0
// repair.h: repairs a state after a power cut with `check -r leaks` and `-r all`
// (qcow2/offline/check.h), while repairs are cut short at any point, hit by faults, and started
// again.
#ifndef LAZYCOW_TESTS_SIM_REPAIR_H
#define LAZYCOW_TESTS_SIM_REPAIR_H

#include <stdbool.h>

#include "tests/sim/run.h"

// Progress of the repair.
enum repair_outcome {
    REPAIR_HALF, // cut short; recovery has to do
    REPAIR_LEAKS,
    REPAIR_ALL,
};

// Repairs the image in state, which becomes the state after the last attempt. Fails the run when
// the content changes, when an undisturbed attempt fails, or when a fault is left that should have
// been repaired. damage: damages the image first (damage.h); then it is repaired to the end.
enum repair_outcome repair_run(struct run *run, struct memory *state, bool damage, struct rng *rng);

#endif
