// SPDX-License-Identifier: Apache-2.0
#include "qcow2/space/refcount_page.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/bits.h"
#include "qcow2/format/refcount_array.h"

void refcount_page_init(struct refcount_page *page, const struct geometry *g, bool known)
{
    *page = (struct refcount_page){.state = known ? REFCOUNT_PAGE_KNOWN : REFCOUNT_PAGE_UNKNOWN,
                                   .free = refcount_page_size(g)};
    waitq_init(&page->waiters, "a refcount block to be read");
}

void refcount_page_free(struct refcount_page *page)
{
    free(page->used);
    free(page->counts);
    free(page->dirty);
}

// ---- As on disk

int refcount_page_decode(struct refcount_page *page, const struct geometry *g, uint8_t **block)
{
    uint64_t n = refcount_page_size(g);
    bool shared = false;
    uint64_t *used = calloc(bits_words(n), sizeof(*used));

    if (!used)
        return -ENOMEM;
    page->free = n;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t count = refcount_array_get(*block, g->refcount_order, i);

        if (count == 0)
            continue;
        bits_set(used, i);
        page->free--;
        shared |= count > 1;
    }
    page->used = used;
    if (shared) {
        page->counts = *block;
        *block = NULL;
    }
    page->state = REFCOUNT_PAGE_KNOWN;
    return 0;
}

// Number of refcounts in a piece of the block.
static uint64_t in_piece(const struct geometry *g)
{
    return (uint64_t)g->piece_bytes * 8 >> g->refcount_order;
}

void refcount_page_encode(const struct refcount_page *page, const struct geometry *g,
                          uint64_t piece, void *buf)
{
    if (page->counts) {
        memcpy(buf, page->counts + piece * g->piece_bytes, g->piece_bytes);
        return;
    }
    memset(buf, 0, g->piece_bytes);
    for (uint64_t i = 0; page->used && i < in_piece(g); i++) {
        if (bits_get(page->used, piece * in_piece(g) + i))
            refcount_array_set(buf, g->refcount_order, i, 1);
    }
}

// ---- What disk does not have

static uint64_t pieces(const struct geometry *g)
{
    return g->cluster_size >> g->piece_bits;
}

int refcount_page_mark(struct refcount_page *page, const struct geometry *g, uint64_t piece)
{
    if (!page->dirty) {
        page->dirty = calloc(bits_words(pieces(g)), sizeof(*page->dirty));
        if (!page->dirty)
            return -ENOMEM;
    }
    page->any_dirty = true;
    bits_set(page->dirty, piece);
    return 0;
}

void refcount_page_written(struct refcount_page *page, const struct geometry *g, uint64_t piece)
{
    bits_clear(page->dirty, piece);
    for (uint64_t i = 0; i < bits_words(pieces(g)); i++) {
        if (page->dirty[i] != 0)
            return;
    }
    page->any_dirty = false;
}

// ---- Single refcounts

uint64_t refcount_page_get(const struct refcount_page *page, const struct geometry *g,
                           uint64_t index)
{
    if (!page->used)
        return 0;
    if (page->counts)
        return refcount_array_get(page->counts, g->refcount_order, index);
    return bits_get(page->used, index);
}

// Turns the bitmap into an array of counts.
static int expand(struct refcount_page *page, const struct geometry *g)
{
    uint8_t *counts = calloc(1, g->cluster_size);

    if (!counts)
        return -ENOMEM;
    for (uint64_t i = 0; i < refcount_page_size(g); i++) {
        if (bits_get(page->used, i))
            refcount_array_set(counts, g->refcount_order, i, 1);
    }
    page->counts = counts;
    return 0;
}

int refcount_page_set(struct refcount_page *page, const struct geometry *g, uint64_t index,
                      uint64_t count)
{
    if (count > refcount_array_max(g->refcount_order))
        return -ERANGE;
    if (!page->used) {
        page->used = calloc(bits_words(refcount_page_size(g)), sizeof(*page->used));
        if (!page->used)
            return -ENOMEM;
    }
    if (refcount_page_mark(page, g, index / in_piece(g)) < 0)
        return -ENOMEM;
    if (count > 1 && !page->counts && expand(page, g) < 0)
        return -ENOMEM;

    bool was_used = bits_get(page->used, index);
    if (count > 0 && !was_used) {
        bits_set(page->used, index);
        page->free--;
    } else if (count == 0 && was_used) {
        bits_clear(page->used, index);
        page->free++;
    }
    if (page->counts)
        refcount_array_set(page->counts, g->refcount_order, index, count);
    return 0;
}

// Sets the bits of up to one word of refcounts, all of which must be 0. Returns how many it set; 0
// when a refcount is not 0.
static uint64_t add_word(struct refcount_page *page, const struct geometry *g, uint64_t index,
                         uint64_t count)
{
    uint64_t shift = index % BITS_WORD;
    uint64_t n = count < BITS_WORD - shift ? count : BITS_WORD - shift;
    uint64_t mask = (n == BITS_WORD ? UINT64_MAX : (1ull << n) - 1) << shift;

    if (!page->used || page->counts || (page->used[index / BITS_WORD] & mask) != 0)
        return 0;
    if (refcount_page_mark(page, g, index / in_piece(g)) < 0 ||
        refcount_page_mark(page, g, (index + n - 1) / in_piece(g)) < 0)
        return 0;
    page->used[index / BITS_WORD] |= mask;
    page->free -= n;
    return n;
}

int refcount_page_add(struct refcount_page *page, const struct geometry *g, uint64_t index,
                      uint64_t count, uint64_t by)
{
    uint64_t max = refcount_array_max(g->refcount_order);

    for (uint64_t end = index + count; index < end;) {
        uint64_t done = by == 1 ? add_word(page, g, index, end - index) : 0;

        if (done == 0) {
            uint64_t old = refcount_page_get(page, g, index);
            int result = -ERANGE;

            if (by <= max && old <= max - by)
                result = refcount_page_set(page, g, index, old + by);
            if (result < 0)
                return result;
            done = 1;
        }
        index += done;
    }
    return 0;
}

uint64_t refcount_page_scan(const struct refcount_page *page, uint64_t from, uint64_t end,
                            bool used)
{
    if (!page->used)
        return used ? end : from;
    return bits_next(page->used, from, end, used);
}
