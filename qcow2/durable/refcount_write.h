// SPDX-License-Identifier: Apache-2.0
// refcount_write.h: writes refcounts from memory to disk, as a part of a sync. sync.c tells when.
#ifndef LAZYCOW_QCOW2_DURABLE_REFCOUNT_WRITE_H
#define LAZYCOW_QCOW2_DURABLE_REFCOUNT_WRITE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "qcow2/durable/writeback.h"

struct op;

enum refcount_write_state {
    // Gives new blocks, and a table that grew, their clusters.
    REFCOUNT_WRITE_PLACE,
    REFCOUNT_WRITE_BLOCKS,  // writes pieces of blocks, a batch at a time
    REFCOUNT_WRITE_BARRIER, // a block must be durable before its table entry
    REFCOUNT_WRITE_TABLE,   // writes pieces of the table, or the whole of a moved one
    // A moved table: a barrier, then the header points at it, then another barrier.
    REFCOUNT_WRITE_POINTER,
    REFCOUNT_WRITE_POINTED,
    REFCOUNT_WRITE_MOVED,
    REFCOUNT_WRITE_DONE,
};

struct refcount_write {
    enum refcount_write_state state;
    bool moving;
    // The header may name the new table: the write of its pointer was submitted and has not
    // succeeded.
    bool named;
    uint64_t next_page;
    uint64_t table_first; // clusters of the new table
    uint64_t table_clusters;
    unsigned char pointer[12];
    struct iovec iov; // of pointer
    struct writeback writeback;
};

void refcount_write_free(struct refcount_write *rw);

// Returned when the sync has to make a barrier before the next turn.
#define REFCOUNT_WRITE_NEEDS_BARRIER 2

// Takes one turn on the sync's op. Returns 0 when all refcounts are written (without a barrier
// after the last pieces), OP_PARKED when the next turn continues, REFCOUNT_WRITE_NEEDS_BARRIER, or
// a negative errno. After an error nothing is lost: pieces that were not written are dirty again.
int refcount_write_turn(struct op *op, struct refcount_write *rw);

#endif
