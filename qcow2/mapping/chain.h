// SPDX-License-Identifier: Apache-2.0
// chain.h: finds the layer of a backing chain that holds a guest range. Backing images do not
// change while they are served, so each answer is remembered in a chain place: a long chain costs
// no more than a short one.
#ifndef LAZYCOW_QCOW2_MAPPING_CHAIN_H
#define LAZYCOW_QCOW2_MAPPING_CHAIN_H

#include <stdint.h>

#include "qcow2/mapping/map.h"

struct image;
struct op;

// A run of guest bytes that one layer holds.
struct location {
    // The image that holds the run; NULL: no layer does, the run reads as zeros.
    struct image *layer;
    // 1: the image itself, 2: its backing image, …; 0: none.
    unsigned depth;
    // The mapping in that layer; its length is that of the run.
    struct mapping mapping;
};

// Number of chain places, and log2 of the guest bytes that each covers. A place takes 56 bytes, so
// 1.75 MiB of memory hold the answers for reading 2 GiB at random.
#define CHAIN_PLACES 32768
#define CHAIN_PLACE_BITS 16

struct chain_place {
    uint64_t guest; // where the run begins
    struct location location;
};

struct chain {
    struct chain_place *places; // NULL until an answer is remembered
};

void chain_free(struct chain *chain);

// Finds the run at op->pos, for at most the bytes that are left of the op (at least one). Begins a
// new plan. Returns 0, OP_PARKED (plan again) or a negative errno.
int chain_lookup(struct op *op, struct location *location);

#endif
