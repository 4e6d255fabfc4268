// SPDX-License-Identifier: Apache-2.0
// damage.h: spoils what an image says of its clusters, and leaves what it maps alone: refcounts,
// the refcount table, COPIED flags. `check -r all` has to put all of it right.
#ifndef LAZYCOW_TESTS_SIM_DAMAGE_H
#define LAZYCOW_TESTS_SIM_DAMAGE_H

#include "tests/sim/reader.h"
#include "tests/sim/rng.h"

// memory is that of the reader.
void damage_refcounts(struct memory *memory, const struct reader *reader, struct rng *rng);

#endif
