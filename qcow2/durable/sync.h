// SPDX-License-Identifier: Apache-2.0
// sync.h: makes what was written durable. The only module that orders writes and barriers; the
// rules are at the head of sync.c.
#ifndef LAZYCOW_QCOW2_DURABLE_SYNC_H
#define LAZYCOW_QCOW2_DURABLE_SYNC_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/op.h"
#include "qcow2/durable/header_write.h"
#include "qcow2/durable/refcount_write.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/writeback.h"

struct image;

enum sync_state {
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

// What a sync takes out of the header: unknown autoclear bits, bitmaps with theirs.
enum sync_drops { SYNC_DROPS_NOTHING, SYNC_DROPS_AUTOCLEAR, SYNC_DROPS_BITMAPS };

struct sync {
    struct op op;          // internal; op.state is an enum sync_state
    struct waitq current;  // for the one that runs
    struct waitq cleaning; // for the clean point

    bool dirty_unsure; // the dirty bit may be not set, as writing it failed: HEADER writes it again

    bool clean_wanted; // this sync ends with refcounts written and the dirty bit cleared
    bool clean_final;  // at shutdown: ops are over, nothing is in the way

    // Of the sync that runs.
    bool barrier; // the I/O in flight is one
    enum sync_drops drops;
    bool set_dirty; // HEADER sets the dirty bit
    // data: there is some to make durable, tables or not. barrier: PREPARED makes one, for data,
    // header or refcounts before tables. DURABLE puts it back where the sync failed.
    struct sync_demand demand;
    struct header_write header;
    struct refcount_write refcounts;
    struct writeback writeback; // of L2 and L1
};

void sync_init(struct image *image);
void sync_free(struct sync *sync);

// As sync_wait, but a sync that already runs will do if nothing was written since it began, and
// nothing at all has to be done where nothing is new: then returns 0.
int sync_flush(struct op *op);
// Before the first change: autoclear bits of features that are not kept up go off. Returns 0 when
// they are, or OP_PARKED.
int sync_drop_autoclear(struct op *op);
// As sync_wait, and then refcounts are written and the dirty bit is cleared. wait.result is -EBUSY
// where ops are in flight or clusters wait to be released.
int sync_clean(struct op *op);
// Guest bytes that were answered and are not known to be durable, at most: what is changed twice counts
// twice.
uint64_t sync_bytes_at_stake(const struct image *image);
// Whether memory has anything that disk has not.
bool sync_needed(const struct image *image);

#endif
