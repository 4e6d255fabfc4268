// SPDX-License-Identifier: Apache-2.0
// punch.h: clusters that became free go back to the host, if nobody takes them again soon: a guest
// that writes and trims in turn gets the blocks it had, and no hole is punched under it. A hole is
// punched when two syncs have passed since the cluster became free, at a tick of the host's clock,
// or at a clean point.
#ifndef LAZYCOW_QCOW2_SPACE_PUNCH_H
#define LAZYCOW_QCOW2_SPACE_PUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"

struct image;

// Extents that are remembered (12 MiB); what is freed beyond keeps its host space until it is used
// again.
#define PUNCH_EXTENTS_MAX (256u << 10)
// What one punch takes away for a while: other writers find the rest.
#define PUNCH_BYTES_MAX (64u << 20)
// The same in clusters, which are marked one by one: a fraction of a millisecond where they are small.
#define PUNCH_CLUSTERS_MAX 8192
// Extents that are looked at in one turn of the loop; most of them were taken again where a guest
// writes and trims in turn.
#define PUNCH_EXTENTS_A_TURN 1024

struct punch_extent {
    uint64_t first; // host clusters
    uint64_t count;
    STAILQ_ENTRY(punch_extent) link;
};

STAILQ_HEAD(punch_list, punch_extent);

struct punch {
    bool enabled; // the host can, and is asked to
    bool running;
    struct punch_list young; // freed since the last sync ended
    struct punch_list ripe;  // before it
    struct punch_list due;   // to be punched now
    size_t count;
    struct punch_extent *last; // of young, for joining neighbours; NULL: none
    struct op op;              // internal
    uint64_t run;      // clusters that the punch in flight is about; they are taken meanwhile
    struct waitq idle; // ops that wait for the end of it all
};

void punch_init(struct punch *punch, struct image *image);
void punch_free(struct punch *punch);
// The refcounts of these clusters fell to 0.
void punch_add(struct image *image, uint64_t first, uint64_t count);
// A sync ended well.
void punch_age(struct image *image);
// All that is remembered is due.
void punch_all(struct image *image);
bool punch_idle(const struct punch *punch);

#endif
