// SPDX-License-Identifier: Apache-2.0
// checker.h: runs lazycow's own check (qcow2/offline/check.h) on a state and compares it with
// judge.h.
#ifndef LAZYCOW_TESTS_SIM_CHECKER_H
#define LAZYCOW_TESTS_SIM_CHECKER_H

#include <stdbool.h>

#include "qcow2/offline/check.h"
#include "tests/sim/judge.h"
#include "tests/sim/run.h"

// Checks the image in a state. Fails the run when the check cannot be done, finds a fault that
// would mislead recovery, or disagrees with the judge.
void checker_judge(struct run *run, const struct memory *state, const struct judge_result *judged);

#endif
