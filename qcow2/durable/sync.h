// SPDX-License-Identifier: Apache-2.0
// sync.h: makes what was written durable. The only module that orders writes and barriers; the
// rules are at the head of sync.c.
#ifndef LAZYCOW_QCOW2_DURABLE_SYNC_H
#define LAZYCOW_QCOW2_DURABLE_SYNC_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/op.h"
#include "qcow2/durable/refcount_write.h"
#include "qcow2/base/waitq.h"
#include "qcow2/durable/writeback.h"

struct image;

enum sync_state {
    SYNC_IDLE,
    SYNC_BEGIN,
    SYNC_HEADER,
    SYNC_REFCOUNTS,
    SYNC_PREPARED,
    SYNC_TABLES,
    SYNC_WRITTEN,
    SYNC_DURABLE,
    SYNC_CLEAN_REFCOUNTS,
    SYNC_CLEAN_BARRIER,
    SYNC_CLEAN_WRITTEN,
    SYNC_CLEAN_DURABLE,
    SYNC_PARKED, // what a stage answers that has set op.state to what comes after its I/O
};

struct sync {
    struct op op;          // internal; op.state is an enum sync_state
    struct waitq waiting;  // for the next sync
    struct waitq current;  // for the one that runs
    struct waitq cleaning; // for the clean point
    bool wanted;           // another sync is to follow

    // What the next sync finds. BEGIN takes the first two over (has_data, needs_first); where the
    // sync fails DURABLE puts them back.
    bool unsynced;       // data was written since the last sync began; set where a write ends
    bool barrier_needed; // some of it must be durable before L2 or L1 entries are; set where an
                         // entry is linked
    bool dirty_bit;      // may be set on disk: from HEADER on, until CLEAN clears it
    bool dirty_unsure;   // and may be not, as writing it failed: HEADER writes it again
    bool drop_autoclear; // unknown autoclear bits are to be cleared; set by the first change

    bool clean_wanted; // this sync ends with refcounts written and the dirty bit cleared
    bool clean_final;  // at shutdown: ops are over, nothing is in the way

    // Of the sync that runs.
    bool barrier;     // the I/O in flight is one
    bool set_dirty;   // HEADER sets the dirty bit
    bool has_data;    // there is data to make durable, tables or not
    bool needs_first; // PREPARED makes a barrier: for data, header or refcounts before tables
    unsigned char header_bytes[24];
    struct iovec iov;
    struct refcount_write refcounts;
    struct writeback writeback;          // of L2 and L1
    struct writeback refcount_writeback; // of refcounts
};

void sync_init(struct image *image);
void sync_free(struct sync *sync);

// Starts a sync soon, or one more after the one that runs.
void sync_request(struct image *image);
// Parks the op until everything whose done ran before now is durable; its next turn has wait_result
// 0 or the error. Returns OP_PARKED.
int sync_wait(struct op *op);
// As sync_wait, but a sync that already runs will do if nothing was written since it began, and
// nothing at all has to be done where nothing is new: then returns 0.
int sync_flush(struct op *op);
// As sync_wait, and then refcounts are written and the dirty bit is cleared. wait_result is -EBUSY
// where ops are in flight or clusters wait to be released.
int sync_clean(struct op *op);
// For refcount_write.c: a barrier, whose end is the sync's next turn.
void sync_submit_barrier(struct sync *sync);
// Whether memory has anything that disk has not.
bool sync_needed(const struct image *image);

#endif
