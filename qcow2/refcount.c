// SPDX-License-Identifier: Apache-2.0
#include "qcow2/refcount.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/engine.h"
#include "qcow2/format.h"
#include "qcow2/refcount_array.h"

#define WORD_BITS 64

static uint64_t page_refcounts(const struct refcounts *rc)
{
    return 1ull << rc->geometry.block_bits;
}

static uint64_t words_for(uint64_t bits)
{
    return (bits + WORD_BITS - 1) / WORD_BITS;
}

static bool bit_get(const uint64_t *bits, uint64_t i)
{
    return bits[i / WORD_BITS] >> (i % WORD_BITS) & 1;
}

static void bit_set(uint64_t *bits, uint64_t i)
{
    bits[i / WORD_BITS] |= 1ull << (i % WORD_BITS);
}

static void bit_clear(uint64_t *bits, uint64_t i)
{
    bits[i / WORD_BITS] &= ~(1ull << (i % WORD_BITS));
}

// ---- The table and its pages

static void page_init(const struct refcounts *rc, struct refcount_page *page, bool ready)
{
    *page = (struct refcount_page){.ready = ready, .free = page_refcounts(rc)};
    waitq_init(&page->waiters);
}

static uint64_t table_pieces(const struct refcounts *rc)
{
    return (rc->table_size * FORMAT_ENTRY_BYTES + rc->geometry.piece_bytes - 1) /
           rc->geometry.piece_bytes;
}

int refcounts_init(struct refcounts *rc, const struct geometry *g, uint64_t *table,
                   uint64_t table_size)
{
    *rc = (struct refcounts){.geometry = *g, .table = table, .table_size = table_size};
    rc->pages = calloc(table_size, sizeof(*rc->pages));
    rc->table_dirty = calloc(words_for(table_pieces(rc)), sizeof(*rc->table_dirty));
    if (!rc->pages || !rc->table_dirty) {
        refcounts_free(rc);
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < table_size; i++)
        page_init(rc, &rc->pages[i], table[i] == 0);
    return 0;
}

static void page_free(struct refcount_page *page)
{
    free(page->used);
    free(page->counts);
    free(page->dirty);
}

void refcounts_free(struct refcounts *rc)
{
    for (uint64_t i = 0; rc->pages && i < rc->table_size; i++)
        page_free(&rc->pages[i]);
    free(rc->pages);
    free(rc->table);
    free(rc->table_dirty);
    *rc = (struct refcounts){0};
}

void refcounts_forget(struct refcounts *rc)
{
    for (uint64_t i = 0; i < rc->table_size; i++) {
        page_free(&rc->pages[i]);
        page_init(rc, &rc->pages[i], true);
    }
    rc->dirty_pages = 0;
}

int refcounts_reach(struct refcounts *rc, uint64_t cluster)
{
    uint64_t page = refcounts_page_index(rc, cluster);
    uint64_t in_cluster = rc->geometry.cluster_size / FORMAT_ENTRY_BYTES;

    if (page < rc->table_size)
        return 0;
    if (page >= HEADER_REFCOUNT_TABLE_BYTES_MAX / FORMAT_ENTRY_BYTES)
        return -EFBIG;

    // Half as much again, whole clusters: a table that grows is rewritten elsewhere.
    uint64_t size = page + 1 + rc->table_size / 2;
    size = (size + in_cluster - 1) / in_cluster * in_cluster;
    if (size > HEADER_REFCOUNT_TABLE_BYTES_MAX / FORMAT_ENTRY_BYTES)
        size = HEADER_REFCOUNT_TABLE_BYTES_MAX / FORMAT_ENTRY_BYTES;

    uint64_t *table = calloc(size, sizeof(*table));
    struct refcount_page *pages = calloc(size, sizeof(*pages));
    struct refcounts larger = *rc;
    larger.table_size = size;
    uint64_t *table_dirty = calloc(words_for(table_pieces(&larger)), sizeof(*table_dirty));
    if (!table || !pages || !table_dirty) {
        free(table);
        free(pages);
        free(table_dirty);
        return -ENOMEM;
    }
    memcpy(table, rc->table, rc->table_size * sizeof(*table));
    for (uint64_t i = 0; i < size; i++) {
        page_init(rc, &pages[i], true);
        if (i >= rc->table_size)
            continue;
        pages[i] = rc->pages[i];
        waitq_init(&pages[i].waiters);
        waitq_move(&pages[i].waiters, &rc->pages[i].waiters);
    }
    free(rc->table);
    free(rc->pages);
    free(rc->table_dirty);
    rc->table = table;
    rc->pages = pages;
    rc->table_dirty = table_dirty;
    rc->table_size = size;
    rc->table_moved = true;
    return 0;
}

// ---- Loading a page

struct refcount_load {
    struct image *image;
    uint64_t page;
    uint8_t *block;
    struct file_io io;
    struct iovec iov;
};

// Makes the page from its block; takes the block where its counts are needed.
static int page_from_block(struct refcounts *rc, struct refcount_page *page, uint8_t **block)
{
    uint64_t n = page_refcounts(rc);
    unsigned order = rc->geometry.refcount_order;
    bool shared = false;
    uint64_t *used = calloc(words_for(n), sizeof(*used));

    if (!used)
        return -ENOMEM;
    page->free = n;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t count = refcount_array_get(*block, order, i);

        if (count == 0)
            continue;
        bit_set(used, i);
        page->free--;
        shared |= count > 1;
    }
    page->used = used;
    if (shared) {
        page->counts = *block;
        *block = NULL;
    }
    page->ready = true;
    return 0;
}

static void load_ended(struct file_io *io)
{
    struct refcount_load *load =
        (struct refcount_load *)((char *)io - offsetof(struct refcount_load, io));
    struct refcounts *rc = &load->image->refcounts;
    struct refcount_page *page = &rc->pages[load->page];
    int result = io->result;

    if (result == 0)
        result = page_from_block(rc, page, &load->block);
    if (result < 0)
        image_log(load->image, "cannot read the refcount block at offset %llu: error %d",
                  (unsigned long long)rc->table[load->page], -result);
    page->loading = false;
    waitq_wake(&page->waiters, result);
    free(load->block);
    free(load);
}

int refcounts_load(struct op *op, uint64_t cluster)
{
    struct image *image = op->image;
    struct refcounts *rc = &image->refcounts;
    int result = refcounts_reach(rc, cluster);

    if (result < 0)
        return result;

    uint64_t index = refcounts_page_index(rc, cluster);
    struct refcount_page *page = &rc->pages[index];
    if (page->ready)
        return 0;
    if (page->loading)
        return waitq_park(&page->waiters, op);
    if (rc->table[index] & (rc->geometry.cluster_size - 1)) {
        image_mark_corrupt(image, "a refcount block is not aligned to a cluster", rc->table[index]);
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
                                .done = load_ended};
    page->loading = true;
    file_submit(image->file, &load->io);
    return waitq_park(&page->waiters, op);
}

// ---- Single refcounts

// The largest refcount of this image.
static uint64_t refcounts_max(const struct refcounts *rc)
{
    return refcount_array_max(rc->geometry.refcount_order);
}

uint64_t refcounts_get(const struct refcounts *rc, uint64_t cluster)
{
    const struct refcount_page *page = &rc->pages[refcounts_page_index(rc, cluster)];
    uint64_t index = cluster & (page_refcounts(rc) - 1);

    if (!page->used)
        return 0;
    if (page->counts)
        return refcount_array_get(page->counts, rc->geometry.refcount_order, index);
    return bit_get(page->used, index);
}

bool refcounts_may_be_one(const struct refcounts *rc, uint64_t cluster)
{
    uint64_t page = refcounts_page_index(rc, cluster);

    return page >= rc->table_size || !rc->pages[page].ready || refcounts_get(rc, cluster) == 1;
}

// From a bitmap to an array of counts.
static int page_expand(const struct refcounts *rc, struct refcount_page *page)
{
    uint8_t *counts = NULL;

    if (posix_memalign((void **)&counts, 4096, rc->geometry.cluster_size) != 0)
        return -ENOMEM;
    memset(counts, 0, rc->geometry.cluster_size);
    for (uint64_t i = 0; i < page_refcounts(rc); i++) {
        if (bit_get(page->used, i))
            refcount_array_set(counts, rc->geometry.refcount_order, i, 1);
    }
    page->counts = counts;
    return 0;
}

static uint64_t piece_of(const struct refcounts *rc, uint64_t index)
{
    return (index << rc->geometry.refcount_order) / 8 >> rc->geometry.piece_bits;
}

static int page_mark_dirty(struct refcounts *rc, struct refcount_page *page, uint64_t index)
{
    if (!page->dirty) {
        page->dirty = calloc(words_for(refcounts_pieces(rc)), sizeof(*page->dirty));
        if (!page->dirty)
            return -ENOMEM;
    }
    if (!page->any_dirty) {
        page->any_dirty = true;
        rc->dirty_pages++;
    }
    bit_set(page->dirty, piece_of(rc, index));
    return 0;
}

int refcounts_set(struct refcounts *rc, uint64_t cluster, uint64_t count)
{
    struct refcount_page *page = &rc->pages[refcounts_page_index(rc, cluster)];
    uint64_t index = cluster & (page_refcounts(rc) - 1);

    if (count > refcounts_max(rc))
        return -ERANGE;
    if (!page->used) {
        page->used = calloc(words_for(page_refcounts(rc)), sizeof(*page->used));
        if (!page->used)
            return -ENOMEM;
    }
    if (page_mark_dirty(rc, page, index) < 0)
        return -ENOMEM;
    if (count > 1 && !page->counts && page_expand(rc, page) < 0)
        return -ENOMEM;

    bool was_used = bit_get(page->used, index);
    if (count > 0 && !was_used) {
        bit_set(page->used, index);
        page->free--;
    } else if (count == 0 && was_used) {
        bit_clear(page->used, index);
        page->free++;
    }
    if (page->counts)
        refcount_array_set(page->counts, rc->geometry.refcount_order, index, count);
    return 0;
}

// Sets the bits of up to a word's refcounts that are all 0. Returns how many, 0 where one of them
// is not.
static uint64_t add_word(struct refcounts *rc, struct refcount_page *page, uint64_t index,
                         uint64_t count)
{
    uint64_t shift = index % WORD_BITS;
    uint64_t n = count < WORD_BITS - shift ? count : WORD_BITS - shift;
    uint64_t mask = (n == WORD_BITS ? UINT64_MAX : (1ull << n) - 1) << shift;

    if (!page->used || page->counts || (page->used[index / WORD_BITS] & mask) != 0)
        return 0;
    if (page_mark_dirty(rc, page, index) < 0 || page_mark_dirty(rc, page, index + n - 1) < 0)
        return 0;
    page->used[index / WORD_BITS] |= mask;
    page->free -= n;
    return n;
}

int refcounts_add(struct refcounts *rc, uint64_t cluster, uint64_t count, uint64_t by)
{
    struct refcount_page *page = &rc->pages[refcounts_page_index(rc, cluster)];
    uint64_t end = cluster + count;

    while (cluster < end) {
        uint64_t done =
            by == 1 ? add_word(rc, page, cluster & (page_refcounts(rc) - 1), end - cluster) : 0;

        if (done == 0) {
            uint64_t old = refcounts_get(rc, cluster);
            int result = -ERANGE;

            if (by <= refcounts_max(rc) && old <= refcounts_max(rc) - by)
                result = refcounts_set(rc, cluster, old + by);
            if (result < 0)
                return result;
            done = 1;
        }
        cluster += done;
    }
    return 0;
}

// ---- Searching

// First cluster in [from, end) of the page whose used bit equals used; end if there is none.
static uint64_t scan(const struct refcount_page *page, uint64_t from, uint64_t end, bool used)
{
    for (uint64_t i = from; i < end;) {
        uint64_t word = page->used[i / WORD_BITS];

        word = (used ? word : ~word) >> (i % WORD_BITS);
        if (word != 0) {
            i += (uint64_t)__builtin_ctzll(word);
            return i < end ? i : end;
        }
        i = (i / WORD_BITS + 1) * WORD_BITS;
    }
    return end;
}

bool refcounts_all_free(const struct refcounts *rc, uint64_t cluster, uint64_t count)
{
    const struct refcount_page *page = &rc->pages[refcounts_page_index(rc, cluster)];
    uint64_t index = cluster & (page_refcounts(rc) - 1);

    return !page->used || scan(page, index, index + count, true) == index + count;
}

uint64_t refcounts_find_free(const struct refcounts *rc, uint64_t from, uint64_t end, uint64_t want,
                             uint64_t *first, uint64_t *next)
{
    uint64_t best = 0;
    uint64_t budget = REFCOUNT_SEARCH_WORDS * (uint64_t)WORD_BITS;
    uint64_t at = from;

    while (at < end && budget > 0 && best < want) {
        const struct refcount_page *page = &rc->pages[refcounts_page_index(rc, at)];
        uint64_t base = at & ~(page_refcounts(rc) - 1);
        uint64_t stop = base + page_refcounts(rc) < end ? base + page_refcounts(rc) : end;

        // A page without bitmap is all free or unknown: the first is taken like any run.
        if (!page->ready || page->free == 0) {
            at = stop;
            budget = budget > WORD_BITS ? budget - WORD_BITS : 0;
            continue;
        }
        uint64_t run = page->used ? base + scan(page, at - base, stop - base, false) : at;
        if (run >= stop) {
            budget = budget > stop - at ? budget - (stop - at) : 0;
            at = stop;
            continue;
        }
        uint64_t limit = stop - run < want ? stop : run + want;
        uint64_t run_end = page->used ? base + scan(page, run - base, limit - base, true) : limit;
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
        if (!page->ready)
            return end;
        if (page->free == page_refcounts(rc))
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
    return rc->pages[page].ready && rc->pages[page].free == page_refcounts(rc);
}

bool refcounts_page_dirty(const struct refcounts *rc, uint64_t page)
{
    return rc->pages[page].any_dirty;
}

bool refcounts_piece_dirty(const struct refcounts *rc, uint64_t page, uint64_t piece)
{
    return rc->pages[page].any_dirty && bit_get(rc->pages[page].dirty, piece);
}

void refcounts_encode_piece(const struct refcounts *rc, uint64_t page_index, uint64_t piece,
                            void *buf)
{
    const struct refcount_page *page = &rc->pages[page_index];
    unsigned order = rc->geometry.refcount_order;
    uint64_t per_piece = (uint64_t)rc->geometry.piece_bytes * 8 >> order;

    if (page->counts) {
        memcpy(buf, page->counts + piece * rc->geometry.piece_bytes, rc->geometry.piece_bytes);
        return;
    }
    memset(buf, 0, rc->geometry.piece_bytes);
    for (uint64_t i = 0; page->used && i < per_piece; i++) {
        if (bit_get(page->used, piece * per_piece + i))
            refcount_array_set(buf, order, i, 1);
    }
}

void refcounts_piece_written(struct refcounts *rc, uint64_t page_index, uint64_t piece)
{
    struct refcount_page *page = &rc->pages[page_index];

    bit_clear(page->dirty, piece);
    for (uint64_t i = 0; i < words_for(refcounts_pieces(rc)); i++) {
        if (page->dirty[i] != 0)
            return;
    }
    page->any_dirty = false;
    rc->dirty_pages--;
}

int refcounts_piece_again(struct refcounts *rc, uint64_t page_index, uint64_t piece)
{
    uint64_t per_piece = (uint64_t)rc->geometry.piece_bytes * 8 >> rc->geometry.refcount_order;

    return page_mark_dirty(rc, &rc->pages[page_index], piece * per_piece);
}

void refcounts_set_block(struct refcounts *rc, uint64_t page, uint64_t host_offset)
{
    rc->table[page] = host_offset;
    rc->table_any_dirty = true;
    bit_set(rc->table_dirty, page * FORMAT_ENTRY_BYTES >> rc->geometry.piece_bits);
}

bool refcounts_table_piece_dirty(const struct refcounts *rc, uint64_t piece)
{
    return bit_get(rc->table_dirty, piece);
}

void refcounts_table_written(struct refcounts *rc)
{
    rc->table_any_dirty = false;
    memset(rc->table_dirty, 0, words_for(table_pieces(rc)) * sizeof(*rc->table_dirty));
}
