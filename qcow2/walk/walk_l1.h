// SPDX-License-Identifier: Apache-2.0
// walk_l1.h: the part of a walk (walk.h) that lists the L1 tables.
#ifndef LAZYCOW_QCOW2_WALK_WALK_L1_H
#define LAZYCOW_QCOW2_WALK_WALK_L1_H

#include <stdint.h>

#include "qcow2/walk/walk.h"

struct walk_l1_source {
    uint64_t offset;
    uint32_t entries;
    // Index of a snapshot that has the table; unused for the disk's table.
    uint32_t snapshot;
    uint32_t count; // as in walk_reference
    uint32_t active;
};

// Lists the L1 tables to read in walk->l1_sources, by offset, each once. Reports unreadable tables
// of snapshots. Returns 0, -ENOMEM, or the error of the visitor.
int walk_l1_list(struct walk *walk);

#endif
