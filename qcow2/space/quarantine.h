// SPDX-License-Identifier: Apache-2.0
// quarantine.h: references to host clusters that were given up. Their refcounts are lowered, and
// the clusters may be used again, only when
//   1. a sync has made the unlinking durable (else a power cut brings the old entry back, and
//      behind it somebody else's data), and
//   2. the grace period of the unlinking is over (grace.h): every op that planned before it, and so
//      may still read or write there, has ended or planned anew, and no reply points there any
//      more.
// Then punch.c may give the clusters back to the host. The way of a cluster to freedom, with the
// event behind each step:
//
//   in use ──quarantine_add──> pending ──quarantine_sync_begins──> syncing
//          ──quarantine_sync_ended──> durable ──the releaser, when 2. is so──> refcount 0
//
// From refcount 0 on a cluster can be taken at any point (punch.h):
//
//   young ──sync ends──> ripe ──sync ends, or a tick──> due ──> punched (taken meanwhile) ──> free
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

// Most extents that may wait (24 MiB of memory). An op that would unlink more waits for a sync
// first.
#define QUARANTINE_MAX (512u << 10)

// Clusters that are released in one turn, 30 to 50 ns each, so that others wait less than half a
// millisecond. A guest may discard all of its disk at once.
#define QUARANTINE_RELEASE_A_TURN 8192

struct quarantined {
    uint64_t first; // host clusters
    uint64_t count;
    uint64_t stamp; // stamp of its grace period
    TAILQ_ENTRY(quarantined) link;
};

TAILQ_HEAD(quarantine_list, quarantined);

//   IDLE ──something is durable──> RUNNING <──> WAITING
//     ^──────nothing is left─────────┘
enum releaser_state {
    RELEASER_IDLE,
    RELEASER_RUNNING, // posted, or loading refcounts
    // Waits for the end of the first durable extent's grace period.
    RELEASER_WAITING,
};

struct quarantine {
    struct quarantine_list pending; // unlinked in memory
    struct quarantine_list syncing; // the running sync makes them durable
    struct quarantine_list durable; // its grace period runs
    size_t count;
    enum releaser_state releaser_state;
    struct op releaser;
    // Ops that wait until the quarantine is empty.
    struct waitq empty;
    struct waitq room;
    // Ops that wait for the releaser's next turn.
    struct waitq released;
};

void quarantine_init(struct quarantine *q, struct image *image);
void quarantine_free(struct quarantine *q);

// Gives up one reference to each of the clusters. Cannot fail: without memory the clusters leak,
// and check repairs that.
void quarantine_add(struct image *image, uint64_t first, uint64_t count);
bool quarantine_full(const struct quarantine *q);
bool quarantine_empty(const struct quarantine *q);
// Parks the op until the next turn of a running releaser, and returns OP_PARKED. Returns 0 when no
// releaser runs.
int quarantine_wait_release(struct op *op);
// Returns true when only holders delay the next release. The releaser has asked them to leave.
bool quarantine_held(const struct image *image);

// For sync.c. After a failed sync the references that it should have made durable are pending
// again.
void quarantine_sync_begins(struct image *image);
void quarantine_sync_ended(struct image *image, bool failed);

// Starts the releaser if durable references wait.
void quarantine_kick(struct image *image);

#endif
