// SPDX-License-Identifier: Apache-2.0
// alloc.h: hands out host clusters. Clusters come from two sources: free clusters that the
// refcounts tell, longest runs first; and fresh space beyond every cluster that was ever used.
// Fresh space reads as zeros, and reserve.h reserves it from the host file system ahead, in large
// steps.
#ifndef LAZYCOW_QCOW2_SPACE_ALLOC_H
#define LAZYCOW_QCOW2_SPACE_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/space/reserve.h"

struct image;
struct op;

// Refcount pages that an op passes in one turn while it looks for free clusters, of those that are
// in memory or have no block.
#define ALLOC_PAGES_A_TURN 4096

struct alloc {
    // First cluster of the fresh space. An entry that names a cluster from here on is damaged:
    // map.c does not trust its COPIED flag. Only grows. ALLOC_FRESH_UNKNOWN while recovery has not
    // found the end.
    uint64_t fresh;
    struct reserve reserve;
    // Cluster at which the next search for free clusters begins.
    uint64_t search;
    // A search may find a free cluster: some were not searched since a cluster became free.
    bool may_find;
    uint64_t unknown_page; // pages below this are known
    // A cluster was taken since the image was opened.
    bool taken;
    // The refcounts are right, so that free clusters may be taken.
    bool reuse;
};

// Clusters that were taken: their refcount is 1, and no table refers to them yet.
struct alloc_run {
    uint64_t first;
    uint64_t count;
    bool zero; // they read as zeros, also after a power cut
};

// fresh: first cluster beyond every cluster that was ever used. file_bytes: size of the file now.
// reuse: the refcounts are right, so that free clusters may be taken.
void alloc_init(struct alloc *alloc, struct image *image, uint64_t fresh, uint64_t file_bytes,
                bool reuse);
// Value of fresh while no cluster may be taken.
#define ALLOC_FRESH_UNKNOWN UINT64_MAX

// Takes one run of 1 to want clusters. fresh_only: for tables, which rely on space that reads as
// zeros. Returns 0, OP_PARKED (plan again) or a negative errno: -ENOSPC (also beyond the format's
// limit), -EIO or -ENOMEM.
int alloc_clusters(struct op *op, uint64_t want, bool fresh_only, struct alloc_run *run);

// Returns true as long as the host is known to reserve space with FILE_ALLOCATE.
bool alloc_reserves(const struct alloc *alloc);
// The host has answered that it cannot reserve space.
void alloc_cannot_reserve(struct alloc *alloc);

// A cluster below the fresh space became free.
void alloc_freed(struct alloc *alloc);

// Takes exactly count contiguous clusters of fresh space, which may span refcount pages. Returns as
// alloc_clusters.
int alloc_fresh_exact(struct op *op, uint64_t count, uint64_t *first);

#endif
