// SPDX-License-Identifier: Apache-2.0
// dirty_bit.h: the dirty bit on disk, as far as it is known. Format: qcow2 specification, "Header",
// incompatible feature bit 0.
//
//   CLEAR ──HEADER──> SETTING ──a barrier──> SET ──CLEAN──> CLEARING ──a barrier──> CLEAR
//                      ^   │                                   │
//                HEADER│   │ fails                             │ fails
//                      │   v                                   v
//                      └─ UNSURE <─────────────────────────────┘
//
// HEADER and CLEAN are stages of sync.c, which alone changes the bit.
#ifndef LAZYCOW_QCOW2_CORE_DIRTY_BIT_H
#define LAZYCOW_QCOW2_CORE_DIRTY_BIT_H

#include <stdbool.h>

enum dirty_bit {
    DIRTY_BIT_CLEAR,
    // It is being written, or is written and not durable yet.
    DIRTY_BIT_SETTING,
    DIRTY_BIT_SET,      // durable
    DIRTY_BIT_CLEARING, // being cleared, or cleared and not durable yet
    // Writing it failed: the bit on disk is unknown.
    DIRTY_BIT_UNSURE,
};

// True when the refcounts on disk cannot be trusted: the bit is set, or may be.
static inline bool dirty_bit_on(enum dirty_bit bit)
{
    return bit != DIRTY_BIT_CLEAR && bit != DIRTY_BIT_CLEARING;
}

#endif
