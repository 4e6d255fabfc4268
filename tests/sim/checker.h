// SPDX-License-Identifier: Apache-2.0
// checker.h: our own check (qcow2/offline/check.h) of a state, and whether it agrees with judge.h.
#ifndef LAZYCOW_TESTS_SIM_CHECKER_H
#define LAZYCOW_TESTS_SIM_CHECKER_H

#include <stdbool.h>

#include "qcow2/offline/check.h"
#include "tests/sim/judge.h"
#include "tests/sim/run.h"

// Checks the image in a state; fails the run where the check cannot be done, where it finds what
// recovery could not bear, or anything else than the judge did.
void checker_judge(struct run *run, const struct memory *state, const struct judge_result *judged);

#endif
