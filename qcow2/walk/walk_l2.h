// SPDX-License-Identifier: Apache-2.0
// walk_l2.h: the part of a walk (walk.h) that reads L2 tables.
#ifndef LAZYCOW_QCOW2_WALK_WALK_L2_H
#define LAZYCOW_QCOW2_WALK_WALK_L2_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/walk/scan.h"
#include "qcow2/walk/walk.h"

struct walk_l2_table {
    uint64_t offset; // host bytes
    // Index of an L1 entry that refers to the table, if possible of the disk's L1 table.
    uint32_t l1_index;
    uint32_t count; // as in walk_reference
    uint32_t active;
};

// Most tables that are listed before they are read, 24 bytes each. They map 256 TiB in clusters of
// 64 KiB, so that almost every image is read in one pass, in the order of the file.
#define WALK_L2_LIST_MAX (512u << 10)

// Visits a reference or reports a problem.
int walk_visit(struct walk *walk, const struct walk_reference *reference);
int walk_report(struct walk *walk, const struct walk_problem *problem);

// Adds a table to the list. Returns 0 or -ENOMEM.
int walk_l2_add(struct walk *walk, const struct walk_l2_table *table);

// Returns true when the listed tables should be read before more are added. Merges the list first.
bool walk_l2_full(struct walk *walk);

// The functions of the phase: its beginning, the next range to read, the entries in a range, its
// end.
void walk_l2_begin(struct walk *walk);
bool walk_l2_next(void *context, struct scan_range *range);
int walk_l2_take(void *context, const struct scan_range *range, const uint8_t *bytes);
int walk_l2_end(struct walk *walk);

#endif
