// SPDX-License-Identifier: Apache-2.0
// punch.h: gives free clusters back to the host, unless they are taken again soon: a guest that
// writes and trims alternately gets the blocks it had, and no hole is punched under it. A cluster
// is due when two syncs have passed since it became free, at a tick of the host's clock, or at a
// clean point.
#ifndef LAZYCOW_QCOW2_SPACE_PUNCH_H
#define LAZYCOW_QCOW2_SPACE_PUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"

struct image;

// Most extents that are remembered (12 MiB). A cluster that becomes free beyond this limit keeps
// its host space until it is used again.
#define PUNCH_EXTENTS_MAX (256u << 10)
// Most bytes that one punch makes unavailable while it runs; other writers find the rest.
#define PUNCH_BYTES_MAX (64u << 20)
// Most clusters of one punch, because they are marked one by one: a fraction of a millisecond where
// clusters are small.
#define PUNCH_CLUSTERS_MAX 8192
// Extents that are looked at in one turn. Most of them were taken again if the guest writes and
// trims alternately.
#define PUNCH_EXTENTS_A_TURN 1024

struct punch_extent {
    uint64_t first; // host clusters
    uint64_t count;
    STAILQ_ENTRY(punch_extent) link;
};

STAILQ_HEAD(punch_list, punch_extent);

struct punch {
    // The host can punch holes and is asked to.
    bool enabled;
    bool running;
    // Freed since the last sync ended.
    struct punch_list young;
    struct punch_list ripe; // before it
    struct punch_list due;  // to be punched now
    size_t count;
    // The extent of young to which a neighbour can be joined; NULL: none.
    struct punch_extent *last;
    struct op op; // internal
    // Clusters of the punch in flight, which count as taken meanwhile.
    uint64_t run;
    // Ops that wait until no extent is remembered and no punch is in flight.
    struct waitq idle;
};

void punch_init(struct punch *punch, struct image *image);
void punch_free(struct punch *punch);
// The refcounts of count clusters from first on have become 0.
void punch_add(struct image *image, uint64_t first, uint64_t count);
// A sync has ended well: young extents become ripe, ripe ones due.
void punch_age(struct image *image);
// Makes every remembered extent due.
void punch_all(struct image *image);
bool punch_idle(const struct punch *punch);

#endif
