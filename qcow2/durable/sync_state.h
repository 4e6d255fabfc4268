// SPDX-License-Identifier: Apache-2.0
// sync_state.h: the stages of a sync, and the state of the one that runs. Only sync.c changes it.
#ifndef LAZYCOW_QCOW2_DURABLE_SYNC_STATE_H
#define LAZYCOW_QCOW2_DURABLE_SYNC_STATE_H

#include <stdbool.h>

#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/header_write.h"
#include "qcow2/durable/refcount_write.h"
#include "qcow2/durable/writeback.h"

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
    SYNC_PARKED, // what a stage answers that has set op.state to the stage after its I/O
};

// Kinds of writes that a sync makes, or finds made.
enum sync_wrote {
    SYNC_WROTE_DATA = 1, // by ops, before the sync began
    SYNC_WROTE_HEADER = 2,
    SYNC_WROTE_REFCOUNTS = 4,
    SYNC_WROTE_TABLES = 8,
};

// Of the sync that runs. Nothing but assertions looks at it.
struct sync_facts {
    unsigned exposed;  // bits of enum sync_wrote: written, and by no barrier since made durable
    unsigned barriers; // that have ended well
};

// What a sync takes out of the header: unknown autoclear bits, bitmaps with theirs.
enum sync_drops { SYNC_DROPS_NOTHING, SYNC_DROPS_AUTOCLEAR, SYNC_DROPS_BITMAPS };

struct sync {
    struct op op;          // internal; op.state is an enum sync_state
    struct waitq current;  // for the one that runs
    struct waitq cleaning; // for the clean point

    bool clean_wanted; // this sync ends with refcounts written and the dirty bit cleared
    bool clean_final;  // at shutdown: ops are over, nothing is in the way

    // Of the sync that runs.
    bool barrier; // the I/O in flight is one
    enum sync_drops drops;
    // data: there is some to make durable, tables or not. barrier: PREPARED makes one, for data,
    // header or refcounts before tables. DURABLE puts it back where the sync failed.
    struct sync_demand demand;
    struct sync_facts facts;
    struct header_write header;
    struct refcount_write refcounts;
    struct writeback writeback; // of L2 and L1
};

#endif
