// SPDX-License-Identifier: Apache-2.0
// sync_state.h: the stages of a sync, and the state of the running one. Only sync.c changes it.
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
    // Returned by a stage that has set op.state to the stage after its I/O.
    SYNC_PARKED,
};

// Kinds of writes that a sync makes or takes over.
enum sync_wrote {
    SYNC_WROTE_DATA = 1, // made by ops before the sync began
    SYNC_WROTE_HEADER = 2,
    SYNC_WROTE_REFCOUNTS = 4,
    SYNC_WROTE_TABLES = 8,
};

// Facts of the running sync. Only assertions read them.
struct sync_facts {
    // Bits of enum sync_wrote: written, and not covered by a barrier since.
    unsigned exposed;
    unsigned barriers; // that have ended well
};

// Parts of the header that a sync drops: autoclear bits, or the bitmaps with all autoclear bits.
enum sync_drops { SYNC_DROPS_NOTHING, SYNC_DROPS_AUTOCLEAR, SYNC_DROPS_BITMAPS };

struct sync {
    struct op op;          // internal; op.state is an enum sync_state
    struct waitq current;  // ops that wait for the running sync
    struct waitq cleaning; // ops that wait for the clean point

    // The running sync ends with refcounts written and the dirty bit cleared.
    bool clean_wanted;
    // The image is being closed: no op is in flight, so the clean point need not wait for any.
    bool clean_final;

    // The members below belong to the running sync.
    bool barrier; // the I/O in flight is one
    enum sync_drops drops;
    // data: there is data to make durable, with or without tables. barrier: PREPARED makes a
    // barrier, for data, header or refcounts before tables. A failed sync puts the demand back in
    // DURABLE.
    struct sync_demand demand;
    struct sync_facts facts;
    struct header_write header;
    struct refcount_write refcounts;
    struct writeback writeback; // of L2 and L1
};

#endif
