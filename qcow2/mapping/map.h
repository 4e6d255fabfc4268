// SPDX-License-Identifier: Apache-2.0
// map.h: from guest ranges to what the tables say of them, and changing it. Format: qcow2
// specification, "Cluster mapping".
#ifndef LAZYCOW_QCOW2_MAPPING_MAP_H
#define LAZYCOW_QCOW2_MAPPING_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/mapping/cache.h"
#include "qcow2/format/entry.h"

struct op;
struct image;

// A run of guest bytes that are mapped alike: same kind, same copied flag, contiguous in the file
// where they have a place there. A compressed cluster is a run of its own.
struct mapping {
    enum entry_kind kind; // never ENTRY_INVALID
    bool copied;          // and the L2 table may be written in place as well
    uint64_t
        host_offset; // DATA, ZERO_ALLOCATED: of the first byte; COMPRESSED: of the compressed data
    uint64_t host_length; // COMPRESSED
    uint64_t length;      // guest bytes, at most as many as were asked for
};

// The mapping at guest of an image (the op's, or one of its backing chain), for at most length (>
// 0) bytes. Returns 0, OP_PARKED (plan again), or a negative errno; -EIO where the tables break the
// format (said in the log).
int map_lookup(struct op *op, struct image *image, uint64_t guest, uint64_t length,
               struct mapping *m);

// Whether map_lookup would not have to wait, for guest and all that the same slice maps.
bool map_in_memory(struct image *image, uint64_t guest);

// Whether nothing but zeros is in the cluster of guest, as far as the mapping that holds there
// tells.
bool map_reads_as_zeros(const struct image *image, const struct mapping *m, uint64_t guest);

// Makes the L2 table for guest one that may be written in place: allocates it, or copies one that a
// snapshot shares. Returns 0, OP_PARKED or a negative errno. Leaves no effect that matters if the
// op fails afterwards.
int map_own_table(struct op *op, uint64_t guest);

// The slice that maps guest, about to be changed, and the index of the entry in it. map_own_table
// must have returned 0 for guest before. Returns 0, OP_PARKED or a negative errno.
int map_slice_for_change(struct op *op, uint64_t guest, struct slice **slice, unsigned *index);

// Replaces an entry of a slice from map_slice_for_change (raw: host byte order) and gives up the
// host cluster that the old one referred to, unless the new one refers to it too.
void map_replace(struct image *image, struct slice *slice, unsigned index, uint64_t raw);

// Entries of a slice from index on.
unsigned map_slice_entries(const struct image *image);

#endif
