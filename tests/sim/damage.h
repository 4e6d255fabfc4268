// SPDX-License-Identifier: Apache-2.0
// damage.h: damages the refcounts, the refcount table and the COPIED flags of an image, and leaves
// its mapping alone. `check -r all` has to repair all of it.
#ifndef LAZYCOW_TESTS_SIM_DAMAGE_H
#define LAZYCOW_TESTS_SIM_DAMAGE_H

#include "tests/sim/reader.h"
#include "tests/sim/rng.h"

// memory is the one that reader has opened.
void damage_refcounts(struct memory *memory, const struct reader *reader, struct rng *rng);

#endif
