// SPDX-License-Identifier: Apache-2.0
#include "qcow2/space/alloc.h"

#include <assert.h>
#include <errno.h>

#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/header.h"
#include "qcow2/space/refcount.h"
#include "qcow2/space/reserve.h"

// The header's cluster is never free, even if a damaged refcount is 0.
#define FIRST_CLUSTER 1u

void alloc_init(struct alloc *alloc, struct image *image, uint64_t fresh, uint64_t file_bytes,
                bool reuse)
{
    *alloc = (struct alloc){.fresh = fresh, .search = FIRST_CLUSTER, .reuse = reuse};
    reserve_init(&alloc->reserve, image->file, file_bytes);
}

static int alloc_take(struct image *image, uint64_t first, uint64_t count)
{
    image->alloc->taken = true;
    for (uint64_t i = 0; i < count; i++) {
        // Only free clusters are handed out: a second owner would overwrite the first one's data.
        assert(refcounts_get(image->refcounts, first + i) == 0);
        int result = refcounts_set(image->refcounts, first + i, 1);

        if (result == 0)
            continue;
        while (i-- > 0)
            refcounts_set(image->refcounts, first + i, 0);
        return result;
    }
    return 0;
}

bool alloc_reserves(const struct alloc *alloc)
{
    return alloc->reserve.way == RESERVE_BY_ALLOCATING;
}

void alloc_cannot_reserve(struct alloc *alloc)
{
    alloc->reserve.way = RESERVE_BY_GROWING;
}

void alloc_freed(struct alloc *alloc)
{
    alloc->may_find = true;
}

// Finds the first long run of free clusters near the place of the last search, in known pages.
// Returns its length, 0 if none is near. The next search continues where this one ended.
static uint64_t find_free(struct image *image, uint64_t want, uint64_t *first)
{
    struct alloc *alloc = image->alloc;
    const struct refcounts *rc = image->refcounts;
    // A file may be longer than its refcount table covers.
    uint64_t covered = rc->table_size << rc->geometry.block_bits;
    uint64_t end = alloc->fresh < covered ? alloc->fresh : covered;
    uint64_t from = alloc->search < end ? alloc->search : FIRST_CLUSTER;
    uint64_t next;

    if (!alloc->may_find || end <= FIRST_CLUSTER)
        return 0;
    uint64_t found = refcounts_find_free(rc, from, end, want, first, &next);
    bool all = from == FIRST_CLUSTER && next >= end;
    if (found < want && next >= end && from > FIRST_CLUSTER) {
        uint64_t other;
        uint64_t found_before = refcounts_find_free(rc, FIRST_CLUSTER, from, want, &other, &next);

        all = next >= from;
        if (found_before > found) {
            found = found_before;
            *first = other;
        }
    }
    alloc->search = found > 0 ? *first + found : next;
    alloc->may_find = found > 0 || !all;
    return found;
}

// Loads one more page for the search. Returns 0 or OP_PARKED. A page that cannot be read is
// skipped.
static int learn_page(struct op *op)
{
    struct image *image = op->image;
    struct alloc *alloc = image->alloc;
    struct refcounts *rc = image->refcounts;

    for (unsigned n = 0; alloc->unknown_page << rc->geometry.block_bits < alloc->fresh; n++) {
        uint64_t page = alloc->unknown_page;

        // The next op continues from here.
        if (page >= rc->table_size || n == ALLOC_PAGES_A_TURN)
            return 0;
        if (rc->pages[page].state == REFCOUNT_PAGE_UNKNOWN ||
            rc->pages[page].state == REFCOUNT_PAGE_LOADING) {
            if (op->scanned)
                return 0;
            op->scanned = true;
        }
        int result = refcounts_load(op, page << rc->geometry.block_bits);
        if (result == OP_PARKED)
            return OP_PARKED;
        if (result == 0 && rc->pages[page].free > 0)
            alloc_freed(alloc);
        alloc->unknown_page++;
    }
    return 0;
}

static int take_free(struct op *op, uint64_t want, struct alloc_run *run)
{
    struct image *image = op->image;
    uint64_t first = 0;
    uint64_t found = find_free(image, want, &first);

    if (found == 0)
        return 0;

    int result = alloc_take(image, first, found);
    if (result < 0)
        return result;
    *run = (struct alloc_run){.first = first, .count = found, .zero = false};
    return 0;
}

// Returns how many clusters from first on, at most want, are free and in one known page.
static uint64_t fresh_run(const struct refcounts *rc, uint64_t first, uint64_t want)
{
    uint64_t in_page =
        (1ull << rc->geometry.block_bits) - (first & ((1ull << rc->geometry.block_bits) - 1));
    uint64_t count = 0;

    while (count < want && count < in_page && refcounts_get(rc, first + count) == 0)
        count++;
    return count;
}

// Returns the first free cluster behind one that is in use, the end of its page, or the limit of
// one search, whichever comes first.
static uint64_t next_free(const struct refcounts *rc, uint64_t cluster)
{
    uint64_t page_end = (refcounts_page_index(rc, cluster) + 1) << rc->geometry.block_bits;
    uint64_t first, next;

    return refcounts_find_free(rc, cluster, page_end, 1, &first, &next) > 0 ? first : next;
}

// Returns 0 when clusters below end can exist: the format has a limit, and a device has its size.
// Else -ENOSPC or another negative errno.
static int check_limit(const struct image *image, uint64_t end)
{
    uint64_t limit = HEADER_OFFSET_LIMIT;

    if (!image->file->fresh_is_zero) {
        int64_t size = file_size(image->file);

        if (size < 0)
            return (int)size;
        limit = (uint64_t)size;
    }
    return end > limit >> image->geometry.cluster_bits ? -ENOSPC : 0;
}

static int take_fresh(struct op *op, uint64_t want, struct alloc_run *run)
{
    struct image *image = op->image;
    struct alloc *alloc = image->alloc;
    uint64_t count = 0;
    int result;

    for (;;) {
        result = refcounts_load(op, alloc->fresh);
        if (result != 0)
            return result == -EFBIG ? -ENOSPC : result;
        count = fresh_run(image->refcounts, alloc->fresh, want);
        if (count > 0)
            break;
        // Refcounts beyond the end of the file are leaks, which are skipped.
        alloc->fresh = next_free(image->refcounts, alloc->fresh);
    }
    result = check_limit(image, alloc->fresh + count);
    if (result == 0)
        result = reserve_wait(op, &alloc->reserve,
                              (alloc->fresh + count) << image->geometry.cluster_bits);
    if (result == 0)
        result = alloc_take(image, alloc->fresh, count);
    if (result != 0)
        return result;
    *run = (struct alloc_run){
        .first = alloc->fresh, .count = count, .zero = image->file->fresh_is_zero};
    alloc->fresh += count;
    return 0;
}

int alloc_clusters(struct op *op, uint64_t want, bool fresh_only, struct alloc_run *run)
{
    run->count = 0;
    if (op->image->alloc->reuse && !fresh_only) {
        int result = learn_page(op);

        if (result == 0)
            result = take_free(op, want, run);
        if (result != 0 || run->count > 0)
            return result;
    }
    return take_fresh(op, want, run);
}

int alloc_fresh_exact(struct op *op, uint64_t count, uint64_t *first)
{
    struct image *image = op->image;
    struct alloc *alloc = image->alloc;
    uint64_t at = alloc->fresh;

    for (uint64_t i = 0; i < count; i++) {
        int result = refcounts_load(op, at + i);

        if (result != 0)
            return result == -EFBIG ? -ENOSPC : result;
        if (refcounts_get(image->refcounts, at + i) != 0) {
            at = next_free(image->refcounts, at + i);
            i = (uint64_t)-1;
        }
    }
    int result = check_limit(image, at + count);
    if (result == 0)
        result = reserve_wait(op, &alloc->reserve, (at + count) << image->geometry.cluster_bits);
    if (result == 0)
        result = alloc_take(image, at, count);
    if (result != 0)
        return result;
    alloc->fresh = at + count;
    *first = at;
    return 0;
}
