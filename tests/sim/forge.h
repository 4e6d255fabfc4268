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

// Parts of the guest disk that are used; the rest stays empty.
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
    bool zstd;            // compressed with zstd instead of zlib; version 3 only
    bool leaks;           // count so many clusters as used that the refcount table is nearly full
    bool gaps;            // leave free clusters in between
    unsigned bitmaps;     // persistent ones, at most FORGE_BITMAPS_MAX; version 3 only
    bool stale_bitmaps;   // they are not kept in step with the image, and their clusters leak
    bool later_extension; // the header has an extension behind that of bitmaps
    unsigned fill;        // per cent of the clusters in zones that are mapped
    uint32_t value;       // of the first layer (pattern.h); the layers above it count on
    struct forge_zone zones[FORGE_ZONES_MAX];
    unsigned zone_count;
};

#define FORGE_SNAPSHOTS_MAX 2
#define FORGE_BITMAPS_MAX 3
// Clusters of a bitmap's table of entries, and entries in use.
#define FORGE_BITMAP_ENTRIES 3

// The image in out, which is initialized here. The recipe has to fit the format.
// Returns how many clusters leak.
uint64_t forge_image(const struct forge_recipe *recipe, struct rng *rng, struct memory *out);
// The file in out becomes a block device with so many more bytes, and old ones in them.
void forge_device(uint64_t room, struct memory *out);
// A raw file of that size, full of value.
void forge_raw(uint64_t size, uint32_t value, struct memory *out);

#endif
