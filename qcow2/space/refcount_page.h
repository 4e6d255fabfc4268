// SPDX-License-Identifier: Apache-2.0
// refcount_page.h: the refcounts of one block in memory. Most are 0 or 1, so a page is a bitmap; it
// becomes an array of counts when one of its clusters is shared. An index counts the refcounts of
// the page, from 0. Format: qcow2 specification, "Host cluster management".
#ifndef LAZYCOW_QCOW2_SPACE_REFCOUNT_PAGE_H
#define LAZYCOW_QCOW2_SPACE_REFCOUNT_PAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/format/geometry.h"
#include "qcow2/base/waitq.h"

struct refcount_page {
    uint64_t *used;  // bit set: the refcount is not 0; NULL while not loaded, or all are 0
    uint8_t *counts; // refcounts as on disk; NULL while none is above 1
    uint64_t *dirty; // bit a piece of the block that disk does not have; NULL: none ever
    uint64_t free;   // refcounts that are 0
    bool ready;      // known; false: still to be loaded from the block
    bool loading;
    bool failed; // the last loading did, and nobody was told yet
    bool any_dirty;
    struct waitq waiters; // for the loading
};

static inline uint64_t refcount_page_size(const struct geometry *g)
{
    return 1ull << g->block_bits;
}

// An empty page; ready: all refcounts are 0, else they are still to be loaded.
void refcount_page_init(struct refcount_page *page, const struct geometry *g, bool ready);
void refcount_page_free(struct refcount_page *page);

// Makes the page known from its block, of cluster_size bytes by malloc; takes *block, and sets it
// to NULL, where counts are needed. Returns 0 or -ENOMEM.
int refcount_page_decode(struct refcount_page *page, const struct geometry *g, uint8_t **block);
// The bytes of a piece of the block; buf has piece_bytes.
void refcount_page_encode(const struct refcount_page *page, const struct geometry *g,
                          uint64_t piece, void *buf);

uint64_t refcount_page_get(const struct refcount_page *page, const struct geometry *g,
                           uint64_t index);
// The piece becomes dirty. Returns 0, -ENOMEM, or -ERANGE when the width cannot hold the count.
int refcount_page_set(struct refcount_page *page, const struct geometry *g, uint64_t index,
                      uint64_t count);
// Adds by to count refcounts from index on: whole words at a time where they become 1. Returns 0,
// or as refcount_page_set, with some of them added then.
int refcount_page_add(struct refcount_page *page, const struct geometry *g, uint64_t index,
                      uint64_t count, uint64_t by);
// The first index in [from, end) whose refcount is 0 or, if used, is not 0; end if there is none.
uint64_t refcount_page_scan(const struct refcount_page *page, uint64_t from, uint64_t end,
                            bool used);

// A piece of the block differs from disk. Returns 0 or -ENOMEM; it cannot fail for a page that has
// been dirty before.
int refcount_page_mark(struct refcount_page *page, const struct geometry *g, uint64_t piece);
void refcount_page_written(struct refcount_page *page, const struct geometry *g, uint64_t piece);

#endif
