// SPDX-License-Identifier: Apache-2.0
// extent.h: a run of guest bytes in the answer of a read or a block status.
#ifndef LAZYCOW_QCOW2_BASE_EXTENT_H
#define LAZYCOW_QCOW2_BASE_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

// The extents of one op are in order and cover its range from the start without gaps.
struct extent {
    uint64_t length; // bytes, > 0
    bool hole;       // takes no space of its own (NBD_STATE_HOLE)
    bool zero;       // reads as zeros (NBD_STATE_ZERO)
    // OP_BLOCK_STATUS: 1: allocated in the image itself, 2: in its backing image, …; 0: nowhere.
    unsigned depth;
    // Address of a read's bytes in the file's memory; NULL: they are in the op's buffer, at
    // their place.
    const void *data;
};

#endif
