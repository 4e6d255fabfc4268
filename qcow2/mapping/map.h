// SPDX-License-Identifier: Apache-2.0
// map.h: looks guest ranges up in the L1 and L2 tables, and changes their entries. Format: qcow2
// specification, "Cluster mapping".
#ifndef LAZYCOW_QCOW2_MAPPING_MAP_H
#define LAZYCOW_QCOW2_MAPPING_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/mapping/cache.h"
#include "qcow2/format/entry.h"

struct op;
struct image;

// A run of guest bytes that are mapped alike: one kind, one COPIED flag, contiguous in the file if
// they have host clusters. A compressed cluster is a run of its own.
struct mapping {
    enum entry_kind kind; // never ENTRY_INVALID
    // The cluster and its L2 table may be written in place.
    bool copied;
    // DATA, ZERO_ALLOCATED: of the first byte. COMPRESSED: of the compressed data.
    uint64_t host_offset;
    uint64_t host_length; // COMPRESSED
    // Guest bytes, at most as many as were asked for.
    uint64_t length;
};

// Looks up the mapping at guest of an image (the op's image, or a layer of its backing chain), for
// at most length (> 0) bytes. Returns 0, OP_PARKED (plan again), or a negative errno: -EIO, with a
// line in the log, where the tables break the format.
int map_lookup(struct op *op, struct image *image, uint64_t guest, uint64_t length,
               struct mapping *m);

// Returns true when map_lookup would not wait for guest, nor for anything else that its slice maps.
bool map_in_memory(struct image *image, uint64_t guest);

// Returns true when the mapping m tells that the cluster of guest reads as zeros.
bool map_reads_as_zeros(const struct image *image, const struct mapping *m, uint64_t guest);

// Gives the image an L2 table for guest that may be written in place: allocates it, or copies one
// that a snapshot shares. Returns 0, OP_PARKED or a negative errno. An op that fails afterwards
// need not undo it.
int map_own_table(struct op *op, uint64_t guest);

// Finds the slice that maps guest, to be changed, and the index of the entry in it. map_own_table
// has returned 0 for guest before. Returns 0, OP_PARKED or a negative errno.
int map_slice_for_change(struct op *op, uint64_t guest, struct slice **slice, unsigned *index);

// Replaces an entry of a slice from map_slice_for_change (raw: host byte order). Gives up the host
// cluster of the old entry unless the new entry refers to it, too.
void map_replace(struct image *image, struct slice *slice, unsigned index, uint64_t raw);

// Number of entries of a slice.
unsigned map_slice_entries(const struct image *image);

#endif
