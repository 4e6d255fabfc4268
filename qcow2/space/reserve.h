// SPDX-License-Identifier: Apache-2.0
// reserve.h: space from the host for clusters that are still to be handed out, asked for ahead.
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

// Host space is reserved in steps of an eighth of the file, between these: one extent instead of
// thousands, and a reservation every few thousand requests; what is left over is given back at the
// end.
#define RESERVE_STEP_MIN (1u << 20)
#define RESERVE_STEP_MAX (64u << 20)

enum reserve_way {
    RESERVE_BY_ALLOCATING, // as far as is known
    RESERVE_BY_GROWING,    // the host cannot promise space, but make the file longer
    RESERVE_NOTHING,       // a device has its space, and its end
};

enum reserve_state {
    RESERVE_IDLE,
    RESERVE_AHEAD, // the host is asked, for a step more than is needed
    RESERVE_SHORT, // it had no room for the step
    RESERVE_EXACT, // it is asked for exactly what is needed
    RESERVE_FAILED,
};

struct reserve {
    enum reserve_way way;
    enum reserve_state state;
    uint64_t end; // bytes of the file that the host has space for
    int error;    // RESERVE_FAILED: negative
    struct file *file;
    struct file_io io;
    struct waitq waiters;
};

// end: size of the file now, in bytes. file is borrowed.
void reserve_init(struct reserve *reserve, struct file *file, uint64_t end);

// Makes sure that the file reaches to end (bytes), with space from the host where it can promise
// that: nothing refers to what is beyond the end of the file, even if nothing was written there.
// Returns 0, OP_PARKED (plan again), or a negative errno such as -ENOSPC.
int reserve_wait(struct op *op, struct reserve *reserve, uint64_t end);

#endif
