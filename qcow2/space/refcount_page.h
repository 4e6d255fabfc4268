// SPDX-License-Identifier: Apache-2.0
// refcount_page.h: a page holds the refcounts of one refcount block in memory. Most refcounts are 0
// or 1, so a page is a bitmap; it becomes an array of counts when one of its clusters is shared. An
// index numbers the refcounts of the page from 0. Format: qcow2 specification, "Host cluster
// management".
#ifndef LAZYCOW_QCOW2_SPACE_REFCOUNT_PAGE_H
#define LAZYCOW_QCOW2_SPACE_REFCOUNT_PAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/format/geometry.h"
#include "qcow2/base/waitq.h"

//   UNKNOWN ──a load begins──> LOADING ──> KNOWN, for good
//      ^                          │
//      └──one op is told── FAILED <┘
enum refcount_page_state {
    REFCOUNT_PAGE_UNKNOWN, // the block is still to be loaded
    REFCOUNT_PAGE_LOADING,
    REFCOUNT_PAGE_FAILED, // the load failed, and no op has seen the error yet
    REFCOUNT_PAGE_KNOWN,
};

struct refcount_page {
    enum refcount_page_state state;
    // Bit set: the refcount is not 0. NULL while not loaded, or while all are 0.
    uint64_t *used;
    // The refcounts in the format of the block. NULL while no refcount is above 1.
    uint8_t *counts;
    // Bit a piece of the block: memory differs from disk. NULL until a piece is dirty.
    uint64_t *dirty;
    uint64_t free; // refcounts that are 0
    bool any_dirty;
    struct waitq waiters; // ops that wait for the load
};

static inline uint64_t refcount_page_size(const struct geometry *g)
{
    return 1ull << g->block_bits;
}

// Prepares a page whose refcounts are all 0 (known), or still to be loaded.
void refcount_page_init(struct refcount_page *page, const struct geometry *g, bool known);
void refcount_page_free(struct refcount_page *page);

// Makes the page known from *block, which has cluster_size bytes by malloc. Keeps the block and
// sets *block to NULL when a refcount is above 1. Returns 0 or -ENOMEM.
int refcount_page_decode(struct refcount_page *page, const struct geometry *g, uint8_t **block);
// Encodes a piece of the block; buf has piece_bytes.
void refcount_page_encode(const struct refcount_page *page, const struct geometry *g,
                          uint64_t piece, void *buf);

uint64_t refcount_page_get(const struct refcount_page *page, const struct geometry *g,
                           uint64_t index);
// Sets a refcount; its piece becomes dirty. Returns 0, -ENOMEM, or -ERANGE when the image's
// refcount width cannot hold the count.
int refcount_page_set(struct refcount_page *page, const struct geometry *g, uint64_t index,
                      uint64_t count);
// Adds by to count refcounts from index on. Counts whole words at a time where refcounts become 1.
// Returns 0 or an error of refcount_page_set; after an error some of the refcounts are changed.
int refcount_page_add(struct refcount_page *page, const struct geometry *g, uint64_t index,
                      uint64_t count, uint64_t by);
// Returns the first index in [from, end) whose refcount is 0 (with used: not 0); end if there is
// none.
uint64_t refcount_page_scan(const struct refcount_page *page, uint64_t from, uint64_t end,
                            bool used);

// Makes a piece of the block dirty. Returns 0 or -ENOMEM; cannot fail for a page that was dirty
// before.
int refcount_page_mark(struct refcount_page *page, const struct geometry *g, uint64_t piece);
void refcount_page_written(struct refcount_page *page, const struct geometry *g, uint64_t piece);

#endif
