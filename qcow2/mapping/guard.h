// SPDX-License-Identifier: Apache-2.0
// guard.h: metadata is never overwritten by something else. Before each write its target is checked
// against where the header, the tables and the snapshots lie (what qemu calls overlap checks).
// Known from the first write on; an image that is only read has no use for it.
#ifndef LAZYCOW_QCOW2_MAPPING_GUARD_H
#define LAZYCOW_QCOW2_MAPPING_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/cluster_set.h"

struct image;

struct guard_range {
    uint64_t first; // host clusters [first, end)
    uint64_t end;
    const char *what;
};

struct guard {
    bool ready;
    struct cluster_set tables;  // L2 tables and refcount blocks
    struct guard_range *ranges; // header, L1 tables, snapshot table: sorted, none touches another
    size_t range_count;
    struct guard_range refcount_table; // moves
};

// Collects what there is. Returns 0, -ENOMEM, or -EIO where tables overlap: the image is then
// marked corrupt.
int guard_init(struct image *image);
void guard_free(struct guard *guard);

// What metadata there is among the clusters that [offset, offset + length) of the file touches, or
// NULL.
const char *guard_hit(const struct image *image, uint64_t offset, uint64_t length);

// True when writing to [offset, offset + length) of the file, or giving it up, would cost metadata
// that is known. The image is then marked corrupt.
bool guard_refuses(struct image *image, uint64_t offset, uint64_t length);

// An L2 table or a refcount block came or went; before guard_init, which looks for itself, nothing has to
// be told. guard_add returns 0 or -ENOMEM.
int guard_add(struct image *image, uint64_t host_offset);
void guard_remove(struct image *image, uint64_t host_offset);
// The refcount table lies elsewhere now.
void guard_move_refcount_table(struct image *image, uint64_t first, uint64_t count);

#endif
