// SPDX-License-Identifier: Apache-2.0
// extent.h: a run of guest bytes, as a read or a block status tells of it.
#ifndef LAZYCOW_QCOW2_BASE_EXTENT_H
#define LAZYCOW_QCOW2_BASE_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

// Extents of one op are in order and cover its range from the start without gaps.
struct extent {
    uint64_t length; // bytes, > 0
    bool hole;       // takes no space of its own (NBD_STATE_HOLE)
    bool zero;       // reads as zeros (NBD_STATE_ZERO)
    // OP_BLOCK_STATUS: 1: the image itself has it, 2: its backing image, …; 0: none.
    unsigned depth;
    // A read's bytes, where the file has them; NULL: they are in the op's buffer, at their place.
    const void *data;
};

#endif
