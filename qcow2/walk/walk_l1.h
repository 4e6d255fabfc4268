// SPDX-License-Identifier: Apache-2.0
// walk_l1.h: the part of a walk (walk.h) that finds out which L1 tables there are.
#ifndef LAZYCOW_QCOW2_WALK_WALK_L1_H
#define LAZYCOW_QCOW2_WALK_WALK_L1_H

#include <stdint.h>

#include "qcow2/walk/walk.h"

struct walk_l1_source {
    uint64_t offset;
    uint32_t entries;
    uint32_t snapshot; // its index, of one that has the table; not for the disk's
    uint32_t count;    // as in walk_reference
    uint32_t active;
};

// Lists the L1 tables to be read in walk->l1_sources, by offset, and equal ones once. Reports those of
// snapshots that cannot be read. Returns 0, -ENOMEM, or what the visitor said.
int walk_l1_list(struct walk *walk);

#endif
