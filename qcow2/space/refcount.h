// SPDX-License-Identifier: Apache-2.0
// refcount.h: the refcounts of an image in memory, where they stay until sync.c writes them: the
// table, a page for each refcount block (refcount_page.h), and the search for free clusters. 1 TiB
// of 64 KiB clusters takes 2 MiB. Format: qcow2 specification, "Host cluster management".
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

// The place of the table on disk. While refcounts are counted anew something else may lie there:
//
//   CLAIMED ── refcounts_unclaim ─> UNCLAIMED ── recovery ──> CLAIMED
//      ^                                 └── recovery ──> FOREIGN
//      └───────────── the table has moved ───────────────────┘
enum refcount_table_place {
    REFCOUNT_TABLE_CLAIMED,
    REFCOUNT_TABLE_UNCLAIMED,
    REFCOUNT_TABLE_FOREIGN,
};

struct refcounts {
    struct geometry geometry;
    // Host offsets of refcount blocks, in host byte order; 0: no block.
    uint64_t *table;
    // Entries; a multiple of the entries that fill a cluster.
    uint64_t table_size;
    uint64_t *table_dirty; // bit a piece
    bool table_any_dirty;
    // The table in memory has outgrown the table on disk.
    bool table_moved;
    enum refcount_table_place place;
    // Leading entries whose blocks are known to be refcount blocks: all, except during recovery.
    uint64_t blocks_claimed;
    struct refcount_page *pages; // table_size of them
    uint64_t *dirty_bits;        // bit a page that is dirty
    uint64_t dirty_pages;        // how many
};

// Takes ownership of table (malloc), also on failure. Returns 0 or -ENOMEM.
int refcounts_init(struct refcounts *rc, const struct geometry *g, uint64_t *table,
                   uint64_t table_size);
void refcounts_free(struct refcounts *rc);

#define REFCOUNT_BLOCKS_ALL UINT64_MAX

// Takes the places of the table and its blocks as unknown until recovery claims them.
void refcounts_unclaim(struct refcounts *rc);
// The same, and sets all refcounts to 0, whatever is on disk. The caller counts them anew.
void refcounts_forget(struct refcounts *rc);

// Makes the page of the cluster known. Returns 0, OP_PARKED (plan again) or a negative errno.
int refcounts_load(struct op *op, uint64_t cluster);
// Reads the last block that counts a cluster, blocking, so that refcounts_end() is exact. Returns 0
// or a negative errno: -EFBIG after REFCOUNT_EMPTY_BLOCKS_MAX blocks that count nothing.
int refcounts_load_last(struct refcounts *rc, struct file *file);
// Each takes a read while the image is opened.
#define REFCOUNT_EMPTY_BLOCKS_MAX 64
// Makes the table large enough to have an entry for the cluster. Returns 0, -ENOMEM, or -EFBIG
// beyond HEADER_REFCOUNT_TABLE_BYTES_MAX.
int refcounts_reach(struct refcounts *rc, uint64_t cluster);

// For the functions below the page must be known and the cluster within the table.
uint64_t refcounts_get(const struct refcounts *rc, uint64_t cluster);
// Returns 0, -ENOMEM, or -ERANGE when the image's refcount width cannot hold the count.
int refcounts_set(struct refcounts *rc, uint64_t cluster, uint64_t count);
// Returns false when the page is known and the refcount is not 1. The cluster may be anywhere.
bool refcounts_may_be_one(const struct refcounts *rc, uint64_t cluster);
// Returns true when count refcounts from cluster on, all of them in one page, are 0.
bool refcounts_all_free(const struct refcounts *rc, uint64_t cluster, uint64_t count);
// Adds by to count refcounts from cluster on, all of them in one page. Counts whole words at a time
// where refcounts become 1. Returns 0 or an error of refcounts_set; after an error some of the
// refcounts are changed.
int refcounts_add(struct refcounts *rc, uint64_t cluster, uint64_t count, uint64_t by);

// Finds a run of at most want clusters with refcount 0 that begins in [from, end), inside the
// table, among known pages. The first run that is long enough wins, else the longest. Looks at no
// more than REFCOUNT_SEARCH_WORDS words of bitmap. Returns the length of the run, 0 if none was
// found, and in *next the cluster at which to continue the search.
#define REFCOUNT_SEARCH_WORDS 4096 // 256 Ki clusters, about 10 µs
uint64_t refcounts_find_free(const struct refcounts *rc, uint64_t from, uint64_t end, uint64_t want,
                             uint64_t *first, uint64_t *next);

// Returns true when memory has refcounts, or a table, that the disk does not have.
bool refcounts_dirty(const struct refcounts *rc);

// Returns one past the last cluster below end whose refcount is not 0 or not known; 0 if there is
// none.
uint64_t refcounts_end(const struct refcounts *rc, uint64_t end);

static inline uint64_t refcounts_page_index(const struct refcounts *rc, uint64_t cluster)
{
    return cluster >> rc->geometry.block_bits;
}

// ---- For sync.c: writing back

// Encodes a piece of a refcount block as it goes to disk. buf has geometry.piece_bytes.
void refcounts_encode_piece(const struct refcounts *rc, uint64_t page, uint64_t piece, void *buf);
uint64_t refcounts_pieces(const struct refcounts *rc); // in a block
// Returns the first dirty page from page on; table_size if there is none.
uint64_t refcounts_next_dirty(const struct refcounts *rc, uint64_t page);
bool refcounts_piece_dirty(const struct refcounts *rc, uint64_t page, uint64_t piece);
void refcounts_piece_written(struct refcounts *rc, uint64_t page, uint64_t piece);
// Makes the piece dirty. Returns 0 or -ENOMEM; cannot fail for a page that was dirty before.
int refcounts_piece_again(struct refcounts *rc, uint64_t page, uint64_t piece);
// Returns true when all refcounts of the page are 0, so that it needs no block.
bool refcounts_page_empty(const struct refcounts *rc, uint64_t page);
// Sets the table entry of a page and makes that piece of the table dirty.
void refcounts_set_block(struct refcounts *rc, uint64_t page, uint64_t host_offset);

bool refcounts_table_piece_dirty(const struct refcounts *rc, uint64_t piece);
void refcounts_table_written(struct refcounts *rc); // all of it

#endif
