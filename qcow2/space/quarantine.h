// SPDX-License-Identifier: Apache-2.0
// quarantine.h: references to host clusters that were given up. Their refcounts go down, and the
// clusters may be used again, only when
//   1. a sync has made the unlinking durable (else a power cut brings the old entry back, and
//      behind it somebody else's data), and
//   2. its grace period is over (grace.h): every op that planned before the unlinking, and so may still
//      read or write there, has ended or planned anew, and no reply points there any more.
// Then punch.c may give them back to the host. A cluster's way to freedom, with what moves it:
//
//   in use ──quarantine_add──> pending ──quarantine_sync_begins──> syncing
//          ──quarantine_sync_ended──> durable ──the releaser, when 2. is so──> refcount 0
//
// and from there on, free to be taken at any point (punch.h):
//
//   young ──a sync ends──> ripe ──a sync ends, or a tick──> due ──> punched (taken meanwhile) ──> free
//
// A sync that fails moves syncing back to pending.
#ifndef LAZYCOW_QCOW2_SPACE_QUARANTINE_H
#define LAZYCOW_QCOW2_SPACE_QUARANTINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"

struct image;

// Extents that may wait (24 MiB of memory). Whoever unlinks more waits for a sync first.
#define QUARANTINE_MAX (512u << 10)

// Clusters that are released in one turn of the loop, 30 to 50 ns each: others wait less than half a
// millisecond. A guest may discard all of its disk at once.
#define QUARANTINE_RELEASE_A_TURN 8192

struct quarantined {
    uint64_t first; // host clusters
    uint64_t count;
    uint64_t stamp; // its grace period is that of this stamp
    TAILQ_ENTRY(quarantined) link;
};

TAILQ_HEAD(quarantine_list, quarantined);

//   IDLE ──something is durable──> RUNNING <──> WAITING
//     ^──────nothing is left─────────┘
enum releaser_state {
    RELEASER_IDLE,
    RELEASER_RUNNING, // posted, or loading refcounts
    RELEASER_WAITING, // for the grace period of the first durable extent
};

struct quarantine {
    struct quarantine_list pending; // unlinked in memory
    struct quarantine_list syncing; // the running sync makes it durable
    struct quarantine_list durable; // its grace period runs
    size_t count;
    enum releaser_state releaser_state;
    struct op releaser;
    struct waitq empty; // ops that wait for all of it to be released
    struct waitq room;
    struct waitq released; // ops that wait for the releaser's next turn
};

void quarantine_init(struct quarantine *q, struct image *image);
void quarantine_free(struct quarantine *q);

// Gives up one reference to each of the clusters. Cannot fail: without memory the clusters leak,
// which check repairs.
void quarantine_add(struct image *image, uint64_t first, uint64_t count);
bool quarantine_full(const struct quarantine *q);
bool quarantine_empty(const struct quarantine *q);
// Waits for the next turn of a releaser that is running. Returns 0: none is; or OP_PARKED.
int quarantine_wait_release(struct op *op);
// True when holders alone are in the way of the next release. The releaser has asked them to leave.
bool quarantine_held(const struct image *image);

// For sync.c: a sync begins; it ended (failed: what it should have made durable waits on).
void quarantine_sync_begins(struct image *image);
void quarantine_sync_ended(struct image *image, bool failed);

// Starts the releaser if it has something to do.
void quarantine_kick(struct image *image);

#endif
