// SPDX-License-Identifier: Apache-2.0
// reserve.h: reserves host space for clusters before they are handed out.
//
//           a step ahead                  fails
//   IDLE ────────────────> AHEAD ─────────────────────> SHORT ──exactly what is needed──> EXACT
//    ^                       │                                                            │   │
//    ├────────ends well──────┴────────────────────────ends well───────────────────────────┘   │
//    └──one op is told <── FAILED <────────────────────fails──────────────────────────────────┘
#ifndef LAZYCOW_QCOW2_SPACE_RESERVE_H
#define LAZYCOW_QCOW2_SPACE_RESERVE_H

#include <stdint.h>

#include "qcow2/base/file.h"
#include "qcow2/base/waitq.h"

struct op;

// Bounds of a reservation: it is an eighth of the file, between these. This makes one extent
// instead of thousands, and one reservation every few thousand requests. Space that is left over is
// given back when the image is closed.
#define RESERVE_STEP_MIN (1u << 20)
#define RESERVE_STEP_MAX (64u << 20)

enum reserve_way {
    RESERVE_BY_ALLOCATING, // as far as is known
    // The host cannot promise space but can make the file longer.
    RESERVE_BY_GROWING,
    // A device: its space is there, and it has a fixed end.
    RESERVE_NOTHING,
};

enum reserve_state {
    RESERVE_IDLE,
    // The host is asked for a step more than is needed.
    RESERVE_AHEAD,
    // The host had no room for the step.
    RESERVE_SHORT,
    // The host is asked for exactly the bytes that are needed.
    RESERVE_EXACT,
    RESERVE_FAILED,
};

struct reserve {
    enum reserve_way way;
    enum reserve_state state;
    // Bytes of the file that have host space.
    uint64_t end;
    int error; // RESERVE_FAILED: negative
    struct file *file;
    struct file_io io;
    struct waitq waiters;
};

// end: size of the file now, in bytes. file is borrowed.
void reserve_init(struct reserve *reserve, struct file *file, uint64_t end);

// Makes sure that the file reaches to end (bytes), with host space where the host can promise it:
// no entry may refer to a cluster beyond the end of the file, even if nothing was written there.
// Returns 0, OP_PARKED (plan again), or a negative errno such as -ENOSPC.
int reserve_wait(struct op *op, struct reserve *reserve, uint64_t end);

#endif
