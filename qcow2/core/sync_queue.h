// SPDX-License-Identifier: Apache-2.0
// sync_queue.h: requests for the next sync, open to every room. Only durable/sync.c runs a sync.
//
//          sync_request          begin              sync_request
//   IDLE ──────────────> DUE ──────────> RUNNING ──────────────> RUNNING_DUE
//    ^                    ^                 │ end                     │ end
//    └────────────────────┼─────────────────┘                         │
//                         └───────────────────────────────────────────┘
#ifndef LAZYCOW_QCOW2_CORE_SYNC_QUEUE_H
#define LAZYCOW_QCOW2_CORE_SYNC_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/waitq.h"

struct image;
struct op;

enum sync_queue_state {
    SYNC_QUEUE_IDLE,
    SYNC_QUEUE_DUE,         // the sync's op is posted
    SYNC_QUEUE_RUNNING,     // a sync that is requested now is another one
    SYNC_QUEUE_RUNNING_DUE, // another sync was requested while one runs
};

// The work for the next sync, which takes it over when it begins.
struct sync_demand {
    bool data;    // data was written since the last sync began
    bool barrier; // some data must be durable before L2 or L1 entries are
    // Upper bound of guest bytes that were changed and answered and are not known to be durable.
    uint64_t bytes;
};

struct sync_queue {
    enum sync_queue_state state;
    // Borrowed. Takes a turn when a sync is due.
    struct op *sync;
    struct waitq waiting;
    struct sync_demand demand;
};

void sync_queue_init(struct sync_queue *queue, struct op *sync);

// Starts a sync soon, or one more after the running one. Writes that end in this turn share it.
void sync_request(struct image *image);
// Parks the op until every request whose done ran before now is durable. Its next turn finds 0 or
// the error in wait.result. Returns OP_PARKED.
int sync_wait(struct op *op);

// A write of guest data has ended.
void sync_note_write(struct image *image);
// A change of bytes guest bytes was answered without being durable.
void sync_note_answered(struct image *image, uint64_t bytes);
// The next sync must make a barrier before it writes tables, because an entry refers to data that
// must be durable first.
void sync_need_barrier(struct image *image);

// ---- For durable/sync.c

// Begins the sync that is due: moves its waiters to current. Returns its demand.
struct sync_demand sync_queue_begin(struct sync_queue *queue, struct waitq *current);
// The sync failed: the next one inherits its demand.
void sync_queue_put_back(struct sync_queue *queue, struct sync_demand demand);
// The sync is over. Posts the next one if it is due.
void sync_queue_end(struct sync_queue *queue);

#endif
