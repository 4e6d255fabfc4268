// SPDX-License-Identifier: Apache-2.0
// alloc.h: where new clusters come from. Two sources: free clusters known from the refcounts,
// longest runs first; and fresh space beyond every cluster that was ever used, which reads as zeros
// and is reserved from the host file system ahead in large steps.
#ifndef LAZYCOW_QCOW2_SPACE_ALLOC_H
#define LAZYCOW_QCOW2_SPACE_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/space/reserve.h"

struct image;
struct op;

// Pages of refcounts that are in memory, or have no block, and that an op passes in one turn to look
// for free clusters.
#define ALLOC_PAGES_A_TURN 4096

struct alloc {
    // First cluster of the fresh space, which is also how far entries are trusted: one that names a
    // cluster from here on names what was never handed out, and map.c does not believe its COPIED
    // flag. Only grows; ALLOC_FRESH_UNKNOWN while recovery has not found the end.
    uint64_t fresh;
    struct reserve reserve;
    uint64_t search; // where to look for free clusters next
    // A search may find something: since a cluster was freed, not all were looked at.
    bool may_find;
    uint64_t unknown_page; // pages below this are known
    bool taken;            // any cluster, since the image was opened
    bool reuse;            // refcounts are right: free clusters may be used
};

// Clusters that were taken: refcount 1, not referenced by any table yet.
struct alloc_run {
    uint64_t first;
    uint64_t count;
    bool zero; // they read as zeros, also after a power cut
};

// fresh: first cluster beyond everything that was ever used; file_bytes: size of the file now.
// reuse: the refcounts are right, so that free clusters may be taken.
void alloc_init(struct alloc *alloc, struct image *image, uint64_t fresh, uint64_t file_bytes,
                bool reuse);
// Where no cluster may be taken yet.
#define ALLOC_FRESH_UNKNOWN UINT64_MAX

// Takes one run of 1 to want clusters. Returns 0, OP_PARKED (plan again) or a negative errno
// (-ENOSPC, -EFBIG as -ENOSPC, -EIO, -ENOMEM). fresh_only: for tables, which rely on reading as
// zeros.
int alloc_clusters(struct op *op, uint64_t want, bool fresh_only, struct alloc_run *run);

// True where the host reserves space when it is asked to (FILE_ALLOCATE), as far as is known.
bool alloc_reserves(const struct alloc *alloc);
// It has answered that it does not.
void alloc_cannot_reserve(struct alloc *alloc);

// A cluster below the fresh space became free.
void alloc_freed(struct alloc *alloc);

// Exactly count contiguous clusters of fresh space, which may span pages.
int alloc_fresh_exact(struct op *op, uint64_t count, uint64_t *first);

#endif
