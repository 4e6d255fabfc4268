// SPDX-License-Identifier: Apache-2.0
#include "qcow2/mapping/map.h"

#include <assert.h>
#include <errno.h>

#include "qcow2/base/op.h"
#include "qcow2/core/host.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/entry.h"
#include "qcow2/format/format.h"
#include "qcow2/format/geometry.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/mapping/l2_table.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/quarantine.h"

unsigned map_slice_entries(const struct image *image)
{
    return (unsigned)(image->geometry.piece_bytes / FORMAT_ENTRY_BYTES);
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

// Sets *offset to the place of the slice that maps guest in the file; 0 if there is no L2 table.
static int slice_offset(struct image *image, uint64_t guest, uint64_t *offset)
{
    const struct geometry *g = &image->geometry;
    uint64_t index = geometry_l1_index(g, guest);
    uint64_t table = image->l1.entries[index] & FORMAT_L1_OFFSET_MASK;
    uint64_t byte = geometry_l2_index(g, guest) * FORMAT_ENTRY_BYTES;

    if (geometry_in_cluster(g, table) != 0) {
        image_log(image, "L1 entry %llu is not aligned to a cluster; run 'lazycow check'",
                  (unsigned long long)index);
        return -EIO;
    }
    *offset = table ? table + (byte & ~(uint64_t)(g->piece_bytes - 1)) : 0;
    return 0;
}

static struct entry slice_entry(const struct image *image, const struct slice *slice,
                                unsigned index)
{
    return entry_decode(be64toh(slice->entries[index]), &image->entry_context);
}

// Returns true when next continues a run of clusters whose first entry is first, as its n-th.
static bool continues(const struct image *image, const struct entry *first,
                      const struct entry *next, uint64_t n)
{
    if (next->kind != first->kind)
        return false;
    switch (first->kind) {
    case ENTRY_UNALLOCATED:
    case ENTRY_ZERO:
        return true;
    case ENTRY_DATA:
    case ENTRY_ZERO_ALLOCATED:
        return next->copied == first->copied &&
               next->host_offset == first->host_offset + (n << image->geometry.cluster_bits);
    default:
        return false;
    }
}

static int lookup_in_slice(struct image *image, const struct slice *slice, uint64_t guest,
                           uint64_t length, struct mapping *m)
{
    const struct geometry *g = &image->geometry;
    unsigned entries = map_slice_entries(image);
    unsigned index = (unsigned)(geometry_l2_index(g, guest) & (entries - 1));
    struct entry first = slice_entry(image, slice, index);
    uint64_t in_cluster = geometry_in_cluster(g, guest);
    uint64_t found = g->cluster_size - in_cluster;

    if (first.kind == ENTRY_INVALID) {
        image_log(image, "the L2 entry for guest offset %llu is invalid; run 'lazycow check'",
                  (unsigned long long)guest);
        return -EIO;
    }
    for (uint64_t n = 1; found < length && index + n < entries; n++) {
        struct entry next = slice_entry(image, slice, index + (unsigned)n);

        if (!continues(image, &first, &next, n))
            break;
        found += g->cluster_size;
    }
    *m = (struct mapping){.kind = first.kind,
                          .copied = first.copied,
                          .host_offset = first.host_offset,
                          .host_length = first.host_length,
                          .length = min_u64(found, length)};
    if (first.kind == ENTRY_DATA || first.kind == ENTRY_ZERO_ALLOCATED)
        m->host_offset += in_cluster;
    return 0;
}

int map_lookup(struct op *op, struct image *image, uint64_t guest, uint64_t length,
               struct mapping *m)
{
    const struct geometry *g = &image->geometry;

    if (image->format == IMAGE_FORMAT_RAW) {
        *m = (struct mapping){.kind = ENTRY_DATA, .host_offset = guest, .length = length};
        return 0;
    }

    uint64_t offset;
    int result = slice_offset(image, guest, &offset);
    if (result < 0)
        return result;
    if (offset == 0) {
        uint64_t span = geometry_l2_span(g);

        *m = (struct mapping){.kind = ENTRY_UNALLOCATED,
                              .length = min_u64(length, span - (guest & (span - 1)))};
        return 0;
    }

    struct slice *slice;
    result = cache_get(op, image, offset, &slice);
    if (result != 0)
        return result;
    result = lookup_in_slice(image, slice, guest, length, m);
    // In a table that a snapshot shares no entry should have COPIED, but an inconsistent table
    // might. An entry is not trusted either when it names a cluster of the fresh space.
    if (result == 0 && (!(image->l1.entries[geometry_l1_index(g, guest)] & FORMAT_COPIED) ||
                        (m->host_offset + m->length - 1) >> g->cluster_bits >= image->alloc->fresh))
        m->copied = false;
    return result;
}

bool map_in_memory(struct image *image, uint64_t guest)
{
    uint64_t offset;

    return slice_offset(image, guest, &offset) == 0 &&
           (offset == 0 || cache_has(image->cache, offset, image->geometry.piece_bits));
}

bool map_reads_as_zeros(const struct image *image, const struct mapping *m, uint64_t guest)
{
    switch (m->kind) {
    case ENTRY_ZERO:
    case ENTRY_ZERO_ALLOCATED:
        return true;
    case ENTRY_UNALLOCATED:
        return !image->backing ||
               geometry_cluster_start(&image->geometry, guest) >= image->backing->size;
    default:
        return false;
    }
}

int map_own_table(struct op *op, uint64_t guest)
{
    struct image *image = op->image;
    uint64_t index = geometry_l1_index(&image->geometry, guest);
    uint64_t entry = image->l1.entries[index];

    uint64_t offset = entry & FORMAT_L1_OFFSET_MASK;

    // A damaged entry may have the COPIED flag and no table, or one in the fresh space: what is
    // written there is cut off with the end of the file.
    if ((entry & FORMAT_COPIED) && offset != 0 &&
        offset >> image->geometry.cluster_bits < image->alloc->fresh)
        return 0;
    return l2_table_own(op, index);
}

int map_slice_for_change(struct op *op, uint64_t guest, struct slice **slice, unsigned *index)
{
    struct image *image = op->image;
    uint64_t offset;
    int result = slice_offset(image, guest, &offset);

    assert(result < 0 || offset != 0);
    if (result == 0)
        result = cache_get_for_change(op, offset, slice);
    *index =
        (unsigned)(geometry_l2_index(&image->geometry, guest) & (map_slice_entries(image) - 1));
    return result;
}

// Gives up the host cluster that the entry refers to.
static void drop_reference(struct image *image, const struct entry *old)
{
    unsigned bits = image->geometry.cluster_bits;
    uint64_t first = old->host_offset >> bits;
    uint64_t count = 1;

    if (old->kind == ENTRY_UNALLOCATED || old->kind == ENTRY_ZERO || old->kind == ENTRY_INVALID)
        return;
    if (old->kind == ENTRY_COMPRESSED)
        count = ((old->host_offset + old->host_length - 1) >> bits) - first + 1;
    if (guard_refuses(image, first << bits, count << bits))
        return;
    quarantine_add(image, first, count);
}

void map_replace(struct image *image, struct slice *slice, unsigned index, uint64_t raw)
{
    struct entry old = slice_entry(image, slice, index);
    struct entry new = entry_decode(raw, &image->entry_context);

    if (be64toh(slice->entries[index]) == raw)
        return;
    image->mapping_changes++;
    slice->entries[index] = htobe64(raw);
    cache_mark_dirty(image->cache, slice);
    if (old.kind == ENTRY_COMPRESSED || new.host_offset != old.host_offset)
        drop_reference(image, &old);
}
