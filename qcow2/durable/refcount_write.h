// SPDX-License-Identifier: Apache-2.0
// refcount_write.h: refcounts from memory to disk. Part of a sync; see sync.c for when.
#ifndef LAZYCOW_QCOW2_DURABLE_REFCOUNT_WRITE_H
#define LAZYCOW_QCOW2_DURABLE_REFCOUNT_WRITE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "qcow2/durable/writeback.h"

struct op;

enum refcount_write_state {
    REFCOUNT_WRITE_PLACE,   // give blocks, and a table that grew, their clusters
    REFCOUNT_WRITE_BLOCKS,  // write pieces of blocks, a batch at a time
    REFCOUNT_WRITE_BARRIER, // no table entry before its block
    REFCOUNT_WRITE_TABLE,   // write pieces of the table, or the whole of a new one
    REFCOUNT_WRITE_POINTER, // a new table: barrier, then the header points at it, a barrier again
    REFCOUNT_WRITE_POINTED,
    REFCOUNT_WRITE_MOVED,
    REFCOUNT_WRITE_DONE,
};

struct refcount_write {
    enum refcount_write_state state;
    bool moving;
    // The header may name the new table: its pointer was submitted, and has not ended well.
    bool named;
    uint64_t next_page;
    uint64_t table_first; // clusters of the new table
    uint64_t table_clusters;
    unsigned char pointer[12];
    struct iovec iov; // of pointer
    struct writeback writeback;
};

void refcount_write_free(struct refcount_write *rw);

// Answered where the sync has to make a barrier before the next turn.
#define REFCOUNT_WRITE_NEEDS_BARRIER 2

// Runs on the sync's op: returns 0 when all refcounts are written (no barrier after the last
// pieces), OP_PARKED when its next turn goes on, REFCOUNT_WRITE_NEEDS_BARRIER, or a negative errno:
// nothing is lost, pieces that were not written are dirty still.
int refcount_write_turn(struct op *op, struct refcount_write *rw);

#endif
