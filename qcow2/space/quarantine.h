// SPDX-License-Identifier: Apache-2.0
// quarantine.h: references to host clusters that were given up. Their refcounts go down, and the
// clusters may be used again, only when
//   1. a sync has made the unlinking durable (else a power cut brings the old entry back, and
//      behind it somebody else's data), and
//   2. every op has ended that may still read or write there, having planned before the unlinking,
//      and given back what it was lent.
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

struct quarantined {
    uint64_t first; // host clusters
    uint64_t count;
    uint64_t stamp; // ops that began before this may use it
    TAILQ_ENTRY(quarantined) link;
};

TAILQ_HEAD(quarantine_list, quarantined);

struct quarantine {
    struct quarantine_list pending; // unlinked in memory
    struct quarantine_list syncing; // the running sync makes it durable
    struct quarantine_list durable; // waits for ops to end, and for what they were lent
    size_t count;
    bool releasing;
    struct op releaser;
    struct waitq empty; // ops that wait for all of it to be released
    struct waitq room;
};

void quarantine_init(struct quarantine *q, struct image *image);
void quarantine_free(struct quarantine *q);

// Gives up one reference to each of the clusters. Cannot fail: without memory the clusters leak,
// which check repairs.
void quarantine_add(struct image *image, uint64_t first, uint64_t count);
bool quarantine_full(const struct quarantine *q);
bool quarantine_empty(const struct quarantine *q);
// Whether leases alone are in the way of the next release. They were recalled (image_host).
bool quarantine_waits_for_leases(const struct image *image);

// For sync.c: a sync begins; it ended (failed: what it should have made durable waits on).
void quarantine_sync_begins(struct image *image);
void quarantine_sync_ended(struct image *image, bool failed);

// Releases what may be released, if anything. Called whenever an op ends, plans anew or gives back.
void quarantine_kick(struct image *image);

#endif
