// SPDX-License-Identifier: Apache-2.0
// refcount.h: the refcounts of an image in memory, where they wait until sync.c writes them: the
// table, a page for each block (refcount_page.h), the search for free clusters. 1 TiB of 64 KiB
// clusters takes 2 MiB. Format: qcow2 specification, "Host cluster management".
#ifndef LAZYCOW_QCOW2_SPACE_REFCOUNT_H
#define LAZYCOW_QCOW2_SPACE_REFCOUNT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/file.h"
#include "qcow2/format/geometry.h"
#include "qcow2/space/refcount_page.h"

struct image;
struct op;

struct refcounts {
    struct geometry geometry;
    uint64_t *table;       // host offsets of refcount blocks, host byte order; 0: none
    uint64_t table_size;   // entries, a multiple of what fits a cluster
    uint64_t *table_dirty; // bit a piece
    bool table_any_dirty;
    bool table_moved;            // the table in memory outgrew the one on disk
    bool table_foreign;          // where the one on disk lies something else does, too
    struct refcount_page *pages; // table_size of them
    uint64_t *dirty_bits;        // bit a page that is dirty
    uint64_t dirty_pages;        // how many
};

// Takes ownership of table (malloc). Returns 0 or -ENOMEM; table is freed then.
int refcounts_init(struct refcounts *rc, const struct geometry *g, uint64_t *table,
                   uint64_t table_size);
void refcounts_free(struct refcounts *rc);

// Forgets everything on disk: all refcounts are 0 from now on and will be counted anew.
void refcounts_forget(struct refcounts *rc);

// Makes the page of the cluster known. Returns 0, OP_PARKED (plan again) or a negative errno.
int refcounts_load(struct op *op, uint64_t cluster);
// Reads the last block that counts anything, blocking, so that refcounts_end() is exact. Returns 0,
// or a negative errno: -EFBIG after REFCOUNT_EMPTY_BLOCKS_MAX blocks that count nothing.
int refcounts_load_last(struct refcounts *rc, struct file *file);
#define REFCOUNT_EMPTY_BLOCKS_MAX 64 // each takes a read while the image is opened
// The table reaches so far that it has an entry for the cluster. Returns 0, -ENOMEM, or -EFBIG
// beyond HEADER_REFCOUNT_TABLE_BYTES_MAX.
int refcounts_reach(struct refcounts *rc, uint64_t cluster);

// The functions below need the page to be known. The cluster must be within the table.
uint64_t refcounts_get(const struct refcounts *rc, uint64_t cluster);
// Returns 0, -ENOMEM, or -ERANGE when the width cannot hold it.
int refcounts_set(struct refcounts *rc, uint64_t cluster, uint64_t count);
// False where the page is known and says otherwise. The cluster may be anywhere.
bool refcounts_may_be_one(const struct refcounts *rc, uint64_t cluster);
// Whether count refcounts from cluster on, all of them in one page, are 0.
bool refcounts_all_free(const struct refcounts *rc, uint64_t cluster, uint64_t count);
// Adds by to count refcounts from cluster on, all of them in one page: whole words at a time where
// they become 1. Returns 0, or as refcounts_set, with some of them added then.
int refcounts_add(struct refcounts *rc, uint64_t cluster, uint64_t count, uint64_t by);

// The longest run of at most want clusters with refcount 0 that begins in [from, end), inside the
// table, among known pages, looking at no more than REFCOUNT_SEARCH_WORDS words of bitmap; the
// first that is long enough wins. Returns its length, 0 if none was found. *next is where to go on
// looking.
#define REFCOUNT_SEARCH_WORDS 4096 // 256 Ki clusters, about 10 µs
uint64_t refcounts_find_free(const struct refcounts *rc, uint64_t from, uint64_t end, uint64_t want,
                             uint64_t *first, uint64_t *next);

// True when memory has refcounts, or a table, that disk has not.
bool refcounts_dirty(const struct refcounts *rc);

// One past the last cluster below end whose refcount is not 0 or not known; 0 if there is none.
uint64_t refcounts_end(const struct refcounts *rc, uint64_t end);

static inline uint64_t refcounts_page_index(const struct refcounts *rc, uint64_t cluster)
{
    return cluster >> rc->geometry.block_bits;
}

// ---- For sync.c: writing back

// The bytes of a piece of a block as they go to disk; buf has geometry.piece_bytes.
void refcounts_encode_piece(const struct refcounts *rc, uint64_t page, uint64_t piece, void *buf);
uint64_t refcounts_pieces(const struct refcounts *rc); // in a block
// The first dirty page from there on; table_size if there is none.
uint64_t refcounts_next_dirty(const struct refcounts *rc, uint64_t page);
bool refcounts_piece_dirty(const struct refcounts *rc, uint64_t page, uint64_t piece);
void refcounts_piece_written(struct refcounts *rc, uint64_t page, uint64_t piece);
// The piece is dirty (again). Returns 0 or -ENOMEM; it cannot fail for a page that has been dirty.
int refcounts_piece_again(struct refcounts *rc, uint64_t page, uint64_t piece);
// A page whose refcounts are all 0 needs no block.
bool refcounts_page_empty(const struct refcounts *rc, uint64_t page);
// The table entry of a page; the piece of the table becomes dirty.
void refcounts_set_block(struct refcounts *rc, uint64_t page, uint64_t host_offset);

bool refcounts_table_piece_dirty(const struct refcounts *rc, uint64_t piece);
void refcounts_table_written(struct refcounts *rc); // all of it

#endif
