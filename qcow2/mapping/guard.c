// SPDX-License-Identifier: Apache-2.0
#include "qcow2/mapping/guard.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "qcow2/base/cluster_set.h"
#include "qcow2/core/corrupt.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/format.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/header.h"
#include "qcow2/format/snapshot_table.h"
#include "qcow2/space/refcount.h"

// Header, active L1 table, snapshot table; the L1 tables of snapshots are added to these.
#define FIXED_RANGES 3

static int compare_ranges(const void *a, const void *b)
{
    const struct guard_range *x = a, *y = b;

    return x->first < y->first ? -1 : x->first > y->first;
}

static void put_range(struct image *image, uint64_t offset, uint64_t bytes, const char *what)
{
    struct guard *guard = image->guard;
    const struct geometry *g = &image->geometry;

    if (bytes == 0)
        return;
    guard->ranges[guard->range_count++] =
        (struct guard_range){.first = offset >> g->cluster_bits,
                             .end = geometry_clusters(g, offset + bytes),
                             .what = what};
}

static void put_ranges(struct image *image)
{
    const struct header *h = &image->header;

    put_range(image, 0, image->geometry.cluster_size, "the header");
    put_range(image, h->l1_offset, (uint64_t)h->l1_size * FORMAT_ENTRY_BYTES, "the L1 table");
    put_range(image, h->snapshot_offset, image->snapshots.bytes, "the snapshot table");
    for (size_t i = 0; i < image->snapshots.count; i++) {
        const struct snapshot *snapshot = &image->snapshots.snapshots[i];

        if (snapshot->l1_valid)
            put_range(image, snapshot->l1_offset, (uint64_t)snapshot->l1_size * FORMAT_ENTRY_BYTES,
                      "the L1 table of a snapshot");
    }
}

// Sorts the ranges and merges those that overlap or touch, so that ends are sorted, too. L1 tables
// of snapshots touch often, and may overlap in a broken image.
static void merge_ranges(struct guard *guard)
{
    struct guard_range *ranges = guard->ranges;
    size_t last = 0;

    qsort(ranges, guard->range_count, sizeof(*ranges), compare_ranges);
    for (size_t i = 1; i < guard->range_count; i++) {
        if (ranges[i].first > ranges[last].end)
            ranges[++last] = ranges[i];
        else if (ranges[i].end > ranges[last].end)
            ranges[last].end = ranges[i].end;
    }
    guard->range_count = last + 1; // the header is always there
}

static void free_collected(struct guard *guard)
{
    cluster_set_free(&guard->tables);
    free(guard->ranges);
    guard->ranges = NULL;
    guard->range_count = 0;
}

// Adds a table. Returns an error when it overlaps other metadata, which a write to it would
// destroy.
static int put_table(struct image *image, uint64_t offset, bool written)
{
    if (offset == 0 ||
        cluster_set_has(&image->guard->added, offset >> image->geometry.cluster_bits))
        return 0;
    const char *what = written ? guard_hit(image, offset, image->geometry.cluster_size) : NULL;
    if (what) {
        corrupt_found(image, "the table at host offset %llu lies over %s",
                      (unsigned long long)offset, what);
        return -EIO;
    }
    return cluster_set_add(&image->guard->tables, offset >> image->geometry.cluster_bits);
}

static int guard_begin(struct image *image)
{
    const struct header *h = &image->header;
    struct guard *guard = image->guard;
    uint64_t entries = image->refcounts->table_size + image->l1.size;

    guard->ranges = calloc(FIXED_RANGES + image->snapshots.count, sizeof(*guard->ranges));
    if (!guard->ranges)
        return -ENOMEM;
    put_ranges(image);
    merge_ranges(guard);
    guard->refcount_table = (struct guard_range){.what = "the refcount table"};
    if (image->refcounts->place == REFCOUNT_TABLE_CLAIMED)
        guard_move_refcount_table(image, h->refcount_table_offset >> h->cluster_bits,
                                  h->refcount_table_clusters);
    guard->next = 0;
    // Reserved for every entry: unused memory costs nothing, while growing a full set takes long.
    cluster_set_reserve(&guard->tables, entries);
    return 0;
}

// Looks at one entry of the L1 table, or, behind those, of the refcount table, which recovery may
// enlarge meanwhile. A block that recovery has not claimed yet may be anything.
static int guard_collect(struct image *image, uint64_t i)
{
    const struct refcounts *rc = image->refcounts;

    if (i >= image->l1.size) {
        uint64_t page = i - image->l1.size;

        return page < rc->blocks_claimed ? put_table(image, rc->table[page], true) : 0;
    }
    // A table that is shared with a snapshot is copied before it is written.
    uint64_t entry = image->l1.entries[i];
    return put_table(image, entry & FORMAT_L1_OFFSET_MASK, (entry & FORMAT_COPIED) != 0);
}

static void guard_end(struct guard *guard, int result)
{
    cluster_set_free(&guard->added);
    if (result < 0) {
        free_collected(guard);
        guard->state = GUARD_NONE;
    } else {
        guard->state = GUARD_READY;
    }
    waitq_wake(&guard->waiters, result);
}

static void collect_step(struct op *op)
{
    struct image *image = op->image;
    struct guard *guard = image->guard;
    int result = 0;

    for (unsigned n = 0; result == 0; n++) {
        if (guard->next == image->refcounts->table_size + image->l1.size)
            break;
        if (n == GUARD_ENTRIES_A_TURN) {
            op_post(op);
            return;
        }
        result = guard_collect(image, guard->next++);
    }
    guard_end(guard, result);
}

static const char *const state_names[] = {"running"};

static const struct op_machine collect_machine =
    OP_MACHINE("collecting of metadata", collect_step, state_names);

int guard_wait(struct op *op)
{
    struct image *image = op->image;
    struct guard *guard = image->guard;

    if (guard->state == GUARD_READY)
        return 0;
    if (guard->state == GUARD_NONE) {
        int result = guard_begin(image);

        if (result < 0)
            return result;
        guard->state = GUARD_COLLECTING;
        op_init(&guard->op, image, image->runq, &collect_machine);
        op_post(&guard->op);
    }
    return op_park(op, &guard->waiters);
}

void guard_init(struct guard *guard)
{
    *guard = (struct guard){0};
    waitq_init(&guard->waiters, "metadata to be collected");
}

void guard_free(struct guard *guard)
{
    free_collected(guard);
    cluster_set_free(&guard->added);
}

static const char *range_hit(const struct guard *guard, uint64_t first, uint64_t end)
{
    const struct guard_range *table = &guard->refcount_table;
    size_t low = 0, high = guard->range_count;

    if (first < table->end && table->first < end)
        return table->what;
    // Binary search for the first range that ends behind first.
    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (guard->ranges[middle].end > first)
            high = middle;
        else
            low = middle + 1;
    }
    return low < guard->range_count && guard->ranges[low].first < end ? guard->ranges[low].what
                                                                      : NULL;
}

const char *guard_hit(const struct image *image, uint64_t offset, uint64_t length)
{
    const struct guard *guard = image->guard;
    unsigned bits = image->geometry.cluster_bits;
    uint64_t first = offset >> bits;
    uint64_t end = ((offset + length - 1) >> bits) + 1;
    const char *what = range_hit(guard, first, end);

    for (uint64_t cluster = first; !what && cluster < end; cluster++) {
        if (cluster_set_has(&guard->tables, cluster))
            what = "an L2 table or refcount block";
    }
    return what;
}

bool guard_refuses(struct image *image, uint64_t offset, uint64_t length)
{
    const char *what = image->guard->state == GUARD_READY ? guard_hit(image, offset, length) : NULL;

    if (what)
        corrupt_found(image, "a write to host offset %llu would have overwritten %s",
                      (unsigned long long)offset, what);
    return what != NULL;
}

int guard_add(struct image *image, uint64_t host_offset)
{
    struct guard *guard = image->guard;
    uint64_t cluster = host_offset >> image->geometry.cluster_bits;

    if (guard->state == GUARD_NONE)
        return 0;
    if (guard->state == GUARD_COLLECTING && cluster_set_add(&guard->added, cluster) < 0)
        return -ENOMEM;
    return cluster_set_add(&guard->tables, cluster);
}

void guard_remove(struct image *image, uint64_t host_offset)
{
    assert(image->guard->state == GUARD_READY);
    cluster_set_remove(&image->guard->tables, host_offset >> image->geometry.cluster_bits);
}

void guard_move_refcount_table(struct image *image, uint64_t first, uint64_t count)
{
    image->guard->refcount_table.first = first;
    image->guard->refcount_table.end = first + count;
}
