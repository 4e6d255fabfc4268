// SPDX-License-Identifier: Apache-2.0
// sync_queue.h: what every room may ask of the next sync. Only durable/sync.c runs one.
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
    SYNC_QUEUE_RUNNING,     // who asks now needs another one
    SYNC_QUEUE_RUNNING_DUE, // and has asked
};

// Found by the next sync, which takes it over when it begins.
struct sync_demand {
    bool data;      // data was written since the last sync began
    bool barrier;   // some of it must be durable before L2 or L1 entries are
    uint64_t bytes; // of changes that were answered and are not known to be durable, at most
};

struct sync_queue {
    enum sync_queue_state state;
    struct op *sync; // borrowed; takes a turn when a sync is due
    struct waitq waiting;
    struct sync_demand demand;
};

void sync_queue_init(struct sync_queue *queue, struct op *sync);

// Starts a sync soon, or one more after the one that runs. Writes that end in this turn share it.
void sync_request(struct image *image);
// Parks the op until everything whose done ran before now is durable; its next turn has wait.result
// 0 or the error. Returns OP_PARKED.
int sync_wait(struct op *op);

// A write of guest data has ended.
void sync_note_write(struct image *image);
// A change of so many guest bytes was answered, and not said to be durable.
void sync_note_answered(struct image *image, uint64_t bytes);
// The next sync makes a barrier before it writes tables: an entry refers to something that must be
// durable first.
void sync_need_barrier(struct image *image);

// ---- For durable/sync.c

// The sync that is due begins: moves the waiters to current. Returns what it has to do.
struct sync_demand sync_queue_begin(struct sync_queue *queue, struct waitq *current);
// The sync failed: the next one has to do it.
void sync_queue_put_back(struct sync_queue *queue, struct sync_demand demand);
// The sync is over; the next one is posted if it is due.
void sync_queue_end(struct sync_queue *queue);

#endif
