// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guard.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2/change.h"
#include "qcow2/engine.h"

// Header, active L1 table, refcount table, snapshot table; snapshots come on top.
#define FIXED_RANGES 4

static const char refcount_table_name[] = "the refcount table";

static int compare_ranges(const void *a, const void *b)
{
    const struct guard_range *x = a, *y = b;

    return x->first < y->first ? -1 : x->first > y->first;
}

static void put_range(struct image *image, uint64_t offset, uint64_t bytes, const char *what)
{
    struct guard *guard = &image->guard;
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
    put_range(image, h->refcount_table_offset,
              (uint64_t)h->refcount_table_clusters << h->cluster_bits, refcount_table_name);
    put_range(image, h->snapshot_offset, image->snapshots.bytes, "the snapshot table");
    for (size_t i = 0; i < image->snapshots.count; i++) {
        const struct snapshot *snapshot = &image->snapshots.snapshots[i];

        if (snapshot->l1_valid)
            put_range(image, snapshot->l1_offset, (uint64_t)snapshot->l1_size * FORMAT_ENTRY_BYTES,
                      "the L1 table of a snapshot");
    }
}

// Metadata that overlaps other metadata would be written over it.
static int put_table(struct image *image, uint64_t offset, bool written)
{
    if (offset == 0)
        return 0;
    if (written && change_hits_metadata(image, offset, image->geometry.cluster_size))
        return -EIO;
    return cluster_set_add(&image->guard.tables, offset >> image->geometry.cluster_bits);
}

int guard_init(struct image *image)
{
    struct guard *guard = &image->guard;
    int result = 0;

    guard->ranges = calloc(FIXED_RANGES + image->snapshots.count, sizeof(*guard->ranges));
    if (!guard->ranges)
        return -ENOMEM;
    put_ranges(image);
    qsort(guard->ranges, guard->range_count, sizeof(*guard->ranges), compare_ranges);

    for (uint64_t i = 0; i < image->refcounts.table_size && result == 0; i++)
        result = put_table(image, image->refcounts.table[i], true);
    // A table that is not ours alone is copied before it is written.
    for (uint64_t i = 0; i < image->l1.size && result == 0; i++)
        result = put_table(image, image->l1.entries[i] & FORMAT_L1_OFFSET_MASK,
                           (image->l1.entries[i] & FORMAT_COPIED) != 0);
    if (result < 0)
        guard_free(guard);
    else
        guard->ready = true;
    return result;
}

void guard_free(struct guard *guard)
{
    cluster_set_free(&guard->tables);
    free(guard->ranges);
    *guard = (struct guard){0};
}

// Ranges may overlap in a broken image; they are few unless there are many snapshots, and sorted by
// their beginning, so the look ends at the first one that begins behind.
static const char *range_hit(const struct guard *guard, uint64_t first, uint64_t end)
{
    for (size_t i = 0; i < guard->range_count && guard->ranges[i].first < end; i++) {
        if (first < guard->ranges[i].end)
            return guard->ranges[i].what;
    }
    return NULL;
}

const char *guard_hit(const struct image *image, uint64_t offset, uint64_t length)
{
    const struct guard *guard = &image->guard;
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

int guard_add(struct image *image, uint64_t host_offset)
{
    if (!image->guard.ready)
        return 0;
    return cluster_set_add(&image->guard.tables, host_offset >> image->geometry.cluster_bits);
}

void guard_remove(struct image *image, uint64_t host_offset)
{
    cluster_set_remove(&image->guard.tables, host_offset >> image->geometry.cluster_bits);
}

void guard_move_refcount_table(struct image *image, uint64_t first, uint64_t count)
{
    struct guard *guard = &image->guard;

    if (!guard->ready)
        return;
    for (size_t i = 0; i < guard->range_count; i++) {
        if (guard->ranges[i].what == refcount_table_name) {
            guard->ranges[i].first = first;
            guard->ranges[i].end = first + count;
        }
    }
    qsort(guard->ranges, guard->range_count, sizeof(*guard->ranges), compare_ranges);
}
