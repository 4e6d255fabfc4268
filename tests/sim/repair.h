// SPDX-License-Identifier: Apache-2.0
// repair.h: `check -r leaks` and `-r all` (qcow2/offline/check.h) of what a power cut left, itself cut
// short at any point, with faults, and begun again.
#ifndef LAZYCOW_TESTS_SIM_REPAIR_H
#define LAZYCOW_TESTS_SIM_REPAIR_H

#include <stdbool.h>

#include "tests/sim/run.h"

// How far it came.
enum repair_outcome {
    REPAIR_HALF, // cut short; recovery has to do
    REPAIR_LEAKS,
    REPAIR_ALL,
};

// Repairs the image in state, which becomes what is left after the last attempt. Fails the run
// where the content changes, where an attempt that nothing disturbed fails, or leaves what it
// should have repaired. damage: spoils it before (damage.h); then it is repaired to the end.
enum repair_outcome repair_run(struct run *run, struct memory *state, bool damage, struct rng *rng);

#endif
