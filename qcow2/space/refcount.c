// SPDX-License-Identifier: Apache-2.0
#include "qcow2/space/refcount.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/bits.h"
#include "qcow2/base/container.h"
#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/corrupt.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/format.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/header.h"
#include "qcow2/space/refcount_page.h"

// ---- The table and its pages

static uint64_t in_page(const struct refcounts *rc, uint64_t cluster)
{
    return cluster & (refcount_page_size(&rc->geometry) - 1);
}

static struct refcount_page *page_of(const struct refcounts *rc, uint64_t cluster)
{
    return &rc->pages[refcounts_page_index(rc, cluster)];
}

static uint64_t table_pieces(const struct refcounts *rc)
{
    return (rc->table_size * FORMAT_ENTRY_BYTES + rc->geometry.piece_bytes - 1) /
           rc->geometry.piece_bytes;
}

int refcounts_init(struct refcounts *rc, const struct geometry *g, uint64_t *table,
                   uint64_t table_size)
{
    *rc = (struct refcounts){.geometry = *g,
                             .table = table,
                             .table_size = table_size,
                             .place = REFCOUNT_TABLE_CLAIMED,
                             .blocks_claimed = REFCOUNT_BLOCKS_ALL};
    rc->pages = calloc(table_size, sizeof(*rc->pages));
    rc->table_dirty = calloc(bits_words(table_pieces(rc)), sizeof(*rc->table_dirty));
    rc->dirty_bits = calloc(bits_words(table_size), sizeof(*rc->dirty_bits));
    if (!rc->pages || !rc->table_dirty || !rc->dirty_bits) {
        refcounts_free(rc);
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < table_size; i++)
        refcount_page_init(&rc->pages[i], &rc->geometry, table[i] == 0);
    return 0;
}

void refcounts_free(struct refcounts *rc)
{
    for (uint64_t i = 0; rc->pages && i < rc->table_size; i++)
        refcount_page_free(&rc->pages[i]);
    free(rc->pages);
    free(rc->table);
    free(rc->table_dirty);
    free(rc->dirty_bits);
    *rc = (struct refcounts){0};
}

void refcounts_unclaim(struct refcounts *rc)
{
    rc->place = REFCOUNT_TABLE_UNCLAIMED;
    rc->blocks_claimed = 0;
}

void refcounts_forget(struct refcounts *rc)
{
    for (uint64_t i = 0; i < rc->table_size; i++) {
        refcount_page_free(&rc->pages[i]);
        refcount_page_init(&rc->pages[i], &rc->geometry, true);
    }
    memset(rc->dirty_bits, 0, bits_words(rc->table_size) * sizeof(*rc->dirty_bits));
    rc->dirty_pages = 0;
    refcounts_unclaim(rc);
}

// Returns a larger copy of an array of bits; NULL without memory.
static uint64_t *bits_grown(const uint64_t *bits, uint64_t old_count, uint64_t count)
{
    uint64_t *grown = calloc(bits_words(count), sizeof(*grown));

    if (grown)
        memcpy(grown, bits, bits_words(old_count) * sizeof(*grown));
    return grown;
}

int refcounts_reach(struct refcounts *rc, uint64_t cluster)
{
    uint64_t page = refcounts_page_index(rc, cluster);
    uint64_t in_cluster = rc->geometry.cluster_size / FORMAT_ENTRY_BYTES;

    if (page < rc->table_size)
        return 0;
    if (page >= HEADER_REFCOUNT_TABLE_BYTES_MAX / FORMAT_ENTRY_BYTES)
        return -EFBIG;

    // The table grows by half and to whole clusters, because a table that grows is written to a new
    // place.
    uint64_t size = page + 1 + rc->table_size / 2;
    size = (size + in_cluster - 1) / in_cluster * in_cluster;
    if (size > HEADER_REFCOUNT_TABLE_BYTES_MAX / FORMAT_ENTRY_BYTES)
        size = HEADER_REFCOUNT_TABLE_BYTES_MAX / FORMAT_ENTRY_BYTES;

    uint64_t *table = calloc(size, sizeof(*table));
    struct refcount_page *pages = calloc(size, sizeof(*pages));
    struct refcounts larger = *rc;
    larger.table_size = size;
    // The dirty marks are kept, because a sync may be about to write those pieces.
    uint64_t *table_dirty = bits_grown(rc->table_dirty, table_pieces(rc), table_pieces(&larger));
    uint64_t *dirty_bits = bits_grown(rc->dirty_bits, rc->table_size, size);
    if (!table || !pages || !table_dirty || !dirty_bits) {
        free(table);
        free(pages);
        free(table_dirty);
        free(dirty_bits);
        return -ENOMEM;
    }
    memcpy(table, rc->table, rc->table_size * sizeof(*table));
    for (uint64_t i = 0; i < size; i++) {
        refcount_page_init(&pages[i], &rc->geometry, true);
        if (i >= rc->table_size)
            continue;
        pages[i] = rc->pages[i];
        waitq_init(&pages[i].waiters, "a refcount block to be read");
        waitq_move(&pages[i].waiters, &rc->pages[i].waiters);
    }
    free(rc->table);
    free(rc->pages);
    free(rc->table_dirty);
    free(rc->dirty_bits);
    rc->table = table;
    rc->pages = pages;
    rc->table_dirty = table_dirty;
    rc->dirty_bits = dirty_bits;
    rc->table_size = size;
    rc->table_moved = true;
    return 0;
}

bool refcounts_dirty(const struct refcounts *rc)
{
    return rc->dirty_pages > 0 || rc->table_any_dirty || rc->table_moved;
}

// ---- Loading a page

struct refcount_load {
    struct image *image;
    uint64_t page;
    uint8_t *block;
    struct file_io io;
    struct iovec iov;
};

static void refcount_load_ended(struct file_io *io)
{
    struct refcount_load *load = container_of(io, struct refcount_load, io);
    struct refcounts *rc = load->image->refcounts;
    struct refcount_page *page = &rc->pages[load->page];
    int result = io->result;

    if (result == 0)
        result = refcount_page_decode(page, &rc->geometry, &load->block);
    if (result < 0)
        image_log(load->image, "cannot read the refcount block at offset %llu: error %d",
                  (unsigned long long)rc->table[load->page], -result);
    if (result < 0)
        page->state = REFCOUNT_PAGE_FAILED;
    waitq_wake(&page->waiters, 0);
    free(load->block);
    free(load);
}

int refcounts_load(struct op *op, uint64_t cluster)
{
    struct image *image = op->image;
    struct refcounts *rc = image->refcounts;
    int result = refcounts_reach(rc, cluster);

    if (result < 0)
        return result;

    uint64_t index = refcounts_page_index(rc, cluster);
    struct refcount_page *page = &rc->pages[index];
    if (page->state == REFCOUNT_PAGE_KNOWN)
        return 0;
    if (page->state == REFCOUNT_PAGE_LOADING)
        return op_park(op, &page->waiters);
    if (page->state == REFCOUNT_PAGE_FAILED) {
        // Only the first op sees the error; later ops load the block again.
        page->state = REFCOUNT_PAGE_UNKNOWN;
        return -EIO;
    }
    if ((rc->table[index] & (rc->geometry.cluster_size - 1)) ||
        rc->table[index] >= HEADER_OFFSET_LIMIT) {
        corrupt_found(image, "a refcount block cannot be at offset %llu",
                      (unsigned long long)rc->table[index]);
        return -EIO;
    }

    struct refcount_load *load = malloc(sizeof(*load));
    if (!load)
        return -ENOMEM;
    if (posix_memalign((void **)&load->block, 4096, rc->geometry.cluster_size) != 0) {
        free(load);
        return -ENOMEM;
    }
    load->image = image;
    load->page = index;
    load->iov = (struct iovec){.iov_base = load->block, .iov_len = rc->geometry.cluster_size};
    load->io = (struct file_io){.kind = FILE_READ,
                                .offset = rc->table[index],
                                .length = rc->geometry.cluster_size,
                                .iov = &load->iov,
                                .iovcnt = 1,
                                .done = refcount_load_ended};
    page->state = REFCOUNT_PAGE_LOADING;
    file_submit(image->file, &load->io);
    return op_park(op, &page->waiters);
}

int refcounts_load_last(struct refcounts *rc, struct file *file)
{
    size_t length = rc->geometry.cluster_size;
    unsigned empty = 0;

    for (uint64_t i = rc->table_size; i-- > 0;) {
        uint8_t *block = NULL;

        if (rc->table[i] == 0)
            continue;
        if (empty++ == REFCOUNT_EMPTY_BLOCKS_MAX || rc->table[i] >= HEADER_OFFSET_LIMIT ||
            rc->table[i] % length != 0)
            return -EFBIG;
        if (posix_memalign((void **)&block, 4096, length) != 0)
            return -ENOMEM;
        int result = file_read_blocking(file, block, rc->table[i], length);
        if (result == 0)
            result = refcount_page_decode(&rc->pages[i], &rc->geometry, &block);
        free(block);
        if (result < 0 || rc->pages[i].free < refcount_page_size(&rc->geometry))
            return result;
    }
    return 0;
}

// ---- Single refcounts

uint64_t refcounts_get(const struct refcounts *rc, uint64_t cluster)
{
    return refcount_page_get(page_of(rc, cluster), &rc->geometry, in_page(rc, cluster));
}

bool refcounts_may_be_one(const struct refcounts *rc, uint64_t cluster)
{
    uint64_t page = refcounts_page_index(rc, cluster);

    return page >= rc->table_size || rc->pages[page].state != REFCOUNT_PAGE_KNOWN ||
           refcounts_get(rc, cluster) == 1;
}

// Updates the page's dirty mark after a change of its pieces.
static void note_dirty(struct refcounts *rc, uint64_t page)
{
    bool dirty = rc->pages[page].any_dirty;

    if (bits_get(rc->dirty_bits, page) == dirty)
        return;
    if (dirty) {
        bits_set(rc->dirty_bits, page);
        rc->dirty_pages++;
    } else {
        bits_clear(rc->dirty_bits, page);
        rc->dirty_pages--;
    }
}

int refcounts_set(struct refcounts *rc, uint64_t cluster, uint64_t count)
{
    int result =
        refcount_page_set(page_of(rc, cluster), &rc->geometry, in_page(rc, cluster), count);

    note_dirty(rc, refcounts_page_index(rc, cluster));
    return result;
}

int refcounts_add(struct refcounts *rc, uint64_t cluster, uint64_t count, uint64_t by)
{
    int result =
        refcount_page_add(page_of(rc, cluster), &rc->geometry, in_page(rc, cluster), count, by);

    note_dirty(rc, refcounts_page_index(rc, cluster));
    return result;
}

// ---- Searching

bool refcounts_all_free(const struct refcounts *rc, uint64_t cluster, uint64_t count)
{
    uint64_t index = in_page(rc, cluster);

    return refcount_page_scan(page_of(rc, cluster), index, index + count, true) == index + count;
}

uint64_t refcounts_find_free(const struct refcounts *rc, uint64_t from, uint64_t end, uint64_t want,
                             uint64_t *first, uint64_t *next)
{
    uint64_t best = 0;
    uint64_t budget = REFCOUNT_SEARCH_WORDS * (uint64_t)BITS_WORD;
    uint64_t page_size = refcount_page_size(&rc->geometry);
    uint64_t at = from;

    while (at < end && budget > 0 && best < want) {
        const struct refcount_page *page = page_of(rc, at);
        uint64_t base = at - in_page(rc, at);
        uint64_t stop = base + page_size < end ? base + page_size : end;

        if (page->state != REFCOUNT_PAGE_KNOWN || page->free == 0) {
            at = stop;
            budget = budget > BITS_WORD ? budget - BITS_WORD : 0;
            continue;
        }
        uint64_t run = base + refcount_page_scan(page, at - base, stop - base, false);
        if (run >= stop) {
            budget = budget > stop - at ? budget - (stop - at) : 0;
            at = stop;
            continue;
        }
        uint64_t limit = stop - run < want ? stop : run + want;
        uint64_t run_end = base + refcount_page_scan(page, run - base, limit - base, true);
        if (run_end - run > best) {
            best = run_end - run;
            *first = run;
        }
        budget = budget > run_end - at ? budget - (run_end - at) : 0;
        at = run_end;
    }
    *next = best >= want ? *first + best : at;
    return best;
}

uint64_t refcounts_end(const struct refcounts *rc, uint64_t end)
{
    while (end > 0) {
        uint64_t cluster = end - 1;
        uint64_t index = refcounts_page_index(rc, cluster);

        if (index >= rc->table_size) {
            end = rc->table_size << rc->geometry.block_bits;
            continue;
        }
        const struct refcount_page *page = &rc->pages[index];
        if (page->state != REFCOUNT_PAGE_KNOWN)
            return end;
        if (page->free == refcount_page_size(&rc->geometry))
            end = index << rc->geometry.block_bits;
        else if (refcounts_get(rc, cluster) != 0)
            return end;
        else
            end--;
    }
    return 0;
}

// ---- Writing back

uint64_t refcounts_pieces(const struct refcounts *rc)
{
    return rc->geometry.cluster_size >> rc->geometry.piece_bits;
}

bool refcounts_page_empty(const struct refcounts *rc, uint64_t page)
{
    return rc->pages[page].state == REFCOUNT_PAGE_KNOWN &&
           rc->pages[page].free == refcount_page_size(&rc->geometry);
}

uint64_t refcounts_next_dirty(const struct refcounts *rc, uint64_t page)
{
    return bits_next(rc->dirty_bits, page, rc->table_size, true);
}

bool refcounts_piece_dirty(const struct refcounts *rc, uint64_t page, uint64_t piece)
{
    return rc->pages[page].any_dirty && bits_get(rc->pages[page].dirty, piece);
}

void refcounts_encode_piece(const struct refcounts *rc, uint64_t page, uint64_t piece, void *buf)
{
    refcount_page_encode(&rc->pages[page], &rc->geometry, piece, buf);
}

void refcounts_piece_written(struct refcounts *rc, uint64_t page, uint64_t piece)
{
    refcount_page_written(&rc->pages[page], &rc->geometry, piece);
    note_dirty(rc, page);
}

int refcounts_piece_again(struct refcounts *rc, uint64_t page, uint64_t piece)
{
    int result = refcount_page_mark(&rc->pages[page], &rc->geometry, piece);

    note_dirty(rc, page);
    return result;
}

void refcounts_set_block(struct refcounts *rc, uint64_t page, uint64_t host_offset)
{
    rc->table[page] = host_offset;
    rc->table_any_dirty = true;
    bits_set(rc->table_dirty, page * FORMAT_ENTRY_BYTES >> rc->geometry.piece_bits);
}

bool refcounts_table_piece_dirty(const struct refcounts *rc, uint64_t piece)
{
    return bits_get(rc->table_dirty, piece);
}

void refcounts_table_written(struct refcounts *rc)
{
    rc->table_any_dirty = false;
    memset(rc->table_dirty, 0, bits_words(table_pieces(rc)) * sizeof(*rc->table_dirty));
}
