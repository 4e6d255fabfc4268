// SPDX-License-Identifier: Apache-2.0
// forge.h: writes qcow2 images of every kind into memory: snapshots that share clusters and tables,
// compressed clusters, zero clusters, free clusters with old bytes in them. Uses none of the
// engine's code.
#ifndef LAZYCOW_TESTS_SIM_FORGE_H
#define LAZYCOW_TESTS_SIM_FORGE_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/memory.h"
#include "tests/sim/rng.h"

// Most parts of the guest disk that are used; the rest stays empty.
#define FORGE_ZONES_MAX 4

struct forge_zone {
    uint64_t offset; // guest bytes
    uint64_t length;
};

struct forge_recipe {
    unsigned version;
    unsigned cluster_bits;
    unsigned refcount_order;
    uint64_t size; // guest bytes
    bool lazy_refcounts;
    const char *backing_name; // NULL: none
    const char *backing_format;
    unsigned snapshots; // at most FORGE_SNAPSHOTS_MAX
    bool compressed;
    bool zstd; // compressed with zstd instead of zlib; version 3 only
    // Count so many unused clusters as used that the refcount table is nearly full.
    bool leaks;
    bool gaps; // leave free clusters in between
    // Persistent bitmaps, at most FORGE_BITMAPS_MAX; version 3 only.
    unsigned bitmaps;
    // The bitmaps are out of date, and their clusters leak.
    bool stale_bitmaps;
    // The header has an extension behind the one of bitmaps.
    bool later_extension;
    unsigned fill; // per cent of the clusters in zones that are mapped
    // Value of the first layer (pattern.h); later layers have the numbers that follow.
    uint32_t value;
    struct forge_zone zones[FORGE_ZONES_MAX];
    unsigned zone_count;
};

#define FORGE_SNAPSHOTS_MAX 2
#define FORGE_BITMAPS_MAX 3
// Clusters of a bitmap's table of entries, and entries in use.
#define FORGE_BITMAP_ENTRIES 3

// Writes the image into out, which is initialized here. The recipe must fit the format. Returns the
// number of leaked clusters.
uint64_t forge_image(const struct forge_recipe *recipe, struct rng *rng, struct memory *out);
// Turns the file in out into a block device with room more bytes, which hold old data.
void forge_device(uint64_t room, struct memory *out);
// Writes a raw file of that size, full of value.
void forge_raw(uint64_t size, uint32_t value, struct memory *out);

#endif
