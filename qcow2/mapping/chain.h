// SPDX-License-Identifier: Apache-2.0
// chain.h: where a guest range is found in an image and the backing images under it. Those do not
// change while they are served, so what was found there is remembered: a long chain costs no more
// than a short one.
#ifndef LAZYCOW_QCOW2_MAPPING_CHAIN_H
#define LAZYCOW_QCOW2_MAPPING_CHAIN_H

#include <stdint.h>

#include "qcow2/mapping/map.h"

struct image;
struct op;

// A run of guest bytes that are found in the same place.
struct location {
    struct image *layer;    // the image that has it; NULL: none, it reads as zeros
    unsigned depth;         // 1: the image itself, 2: its backing image, …; 0: none
    struct mapping mapping; // in that image; its length is that of the run
};

// What was found below the first image, a place for each so many guest bytes. A place for each 64
// KiB takes 64 bytes: 2 MiB of memory hold what is needed to read 2 GiB at random.
#define CHAIN_PLACES 32768
#define CHAIN_PLACE_BITS 16

struct chain_place {
    uint64_t guest; // where the run begins
    struct location location;
};

struct chain {
    struct chain_place *places; // NULL until something was found
};

void chain_free(struct chain *chain);

// A new plan: where op->pos is found, for at most what is left of the op (not nothing). Returns 0,
// OP_PARKED (plan again) or a negative errno.
int chain_lookup(struct op *op, struct location *location);

#endif
