// SPDX-License-Identifier: Apache-2.0
#include "qcow2/walk/walk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/container.h"
#include "qcow2/format/format.h"
#include "qcow2/walk/walk_l1.h"
#include "qcow2/walk/walk_l2.h"

// A phase of the walk: the ranges to read, and how they are handled.
struct walk_phase {
    void (*begin)(struct walk *walk); // may be NULL
    bool (*next)(void *context, struct scan_range *range);
    int (*take)(void *context, const struct scan_range *range, const uint8_t *bytes);
    int (*end)(struct walk *walk); // may be NULL
    // The next phase; NULL: the walk is done.
    const struct walk_phase *(*after)(struct walk *walk);
};

// Returns one past the last cluster that a reference may name.
static uint64_t limit_of(const struct walk *walk, enum walk_kind kind)
{
    if (walk->parts & WALK_ABSURD)
        return UINT64_MAX;
    return kind == WALK_L2 || kind == WALK_DATA || kind == WALK_COMPRESSED ? walk->far : walk->end;
}

int walk_visit(struct walk *walk, const struct walk_reference *reference)
{
    struct walk_reference near = *reference;
    uint64_t limit = limit_of(walk, near.kind);
    int ret = 0;

    if (near.cluster + near.clusters <= limit)
        return walk->visitor->reference(walk->context, &near);
    struct walk_problem problem = {.fault = WALK_FAR,
                                   .kind = near.kind,
                                   .entry = near.entry,
                                   .value = near.cluster << walk->header->cluster_bits,
                                   .guest = near.guest,
                                   .count = near.count,
                                   .active = near.active};
    if (near.cluster < limit) {
        near.clusters = limit - near.cluster;
        if (near.entries > near.clusters)
            near.entries = near.clusters;
        ret = walk->visitor->reference(walk->context, &near);
    }
    return ret < 0 ? ret : walk_report(walk, &problem);
}

int walk_report(struct walk *walk, const struct walk_problem *problem)
{
    return walk->visitor->problem(walk->context, problem);
}

// Visits the clusters of a structure of the disk itself.
static int visit_structure(struct walk *walk, enum walk_kind kind, uint64_t offset, uint64_t bytes)
{
    unsigned bits = walk->header->cluster_bits;
    struct walk_reference ref = {.kind = kind, .cluster = offset >> bits, .count = 1, .active = 1};

    if (bytes == 0)
        return 0;
    ref.clusters = ((offset + bytes - 1) >> bits) - ref.cluster + 1;
    return walk_visit(walk, &ref);
}

// ---- Structure: what the header names -----------------------------------------------------------

static int visit_l1_tables(struct walk *walk)
{
    unsigned bits = walk->header->cluster_bits;
    int ret = 0;

    for (size_t i = 0; i < walk->l1_source_count && ret == 0; i++) {
        const struct walk_l1_source *s = &walk->l1_sources[i];
        uint64_t bytes = (uint64_t)s->entries * FORMAT_ENTRY_BYTES;
        struct walk_reference ref = {.kind = WALK_L1,
                                     .cluster = s->offset >> bits,
                                     .clusters = (bytes + (1ull << bits) - 1) >> bits,
                                     .count = s->count,
                                     .active = s->active};
        if (ref.clusters > 0)
            ret = walk_visit(walk, &ref);
    }
    return ret;
}

static int visit_header(struct walk *walk)
{
    const struct header *h = walk->header;
    int ret = 0;

    if (walk->parts & WALK_OTHER)
        ret = visit_structure(walk, WALK_HEADER, 0, header_cluster_size(h));
    if (ret == 0 && walk->parts & WALK_OTHER)
        ret = visit_structure(walk, WALK_CRYPTO_HEADER, h->crypto_offset, h->crypto_length);
    if (ret == 0 && walk->parts & WALK_OTHER)
        ret = visit_structure(walk, WALK_BITMAP, walk->bitmaps->offset, walk->bitmaps->bytes);
    if (ret == 0 && walk->parts & WALK_SNAPSHOTS)
        ret =
            visit_structure(walk, WALK_SNAPSHOT_TABLE, h->snapshot_offset, walk->snapshots->bytes);
    if (ret == 0 && walk->parts & WALK_REFCOUNTS)
        ret = visit_structure(walk, WALK_REFCOUNT_TABLE, h->refcount_table_offset,
                              (uint64_t)h->refcount_table_clusters << h->cluster_bits);
    if (ret == 0)
        ret = walk_l1_list(walk);
    return ret < 0 ? ret : visit_l1_tables(walk);
}

// ---- L1 tables ----------------------------------------------------------------------------------

// Sets the next range of a table of entries; moves on to the next table at its end.
static bool next_part(struct walk *walk, uint64_t table_offset, uint64_t table_bytes,
                      struct scan_range *range)
{
    uint64_t length = table_bytes - walk->next_offset;

    if (length > SCAN_RANGE_MAX)
        length = SCAN_RANGE_MAX;
    *range = (struct scan_range){.offset = table_offset + walk->next_offset,
                                 .length = (size_t)length,
                                 .tag = walk->next_source};
    walk->next_offset += length;
    if (walk->next_offset == table_bytes) {
        walk->next_offset = 0;
        walk->next_source++;
    }
    return true;
}

static void l1_begin(struct walk *walk)
{
    walk->next_source = walk->next_l1;
    walk->next_offset = walk->next_l1_offset;
}

static bool l1_next(void *context, struct scan_range *range)
{
    struct walk *walk = context;

    while (walk->next_source < walk->l1_source_count) {
        const struct walk_l1_source *s = &walk->l1_sources[walk->next_source];
        if (s->entries > 0)
            return !walk_l2_full(walk) &&
                   next_part(walk, s->offset, (uint64_t)s->entries * FORMAT_ENTRY_BYTES, range);
        walk->next_source++;
    }
    return false;
}

static int l1_entry(struct walk *walk, const struct walk_l1_source *source, uint32_t index,
                    uint64_t value)
{
    uint64_t offset = value & FORMAT_L1_OFFSET_MASK;
    uint64_t cluster_size = header_cluster_size(walk->header);
    struct walk_reference ref = {.kind = WALK_L2,
                                 .cluster = offset >> walk->header->cluster_bits,
                                 .clusters = offset % cluster_size != 0 ? 2 : 1,
                                 .entries = 1,
                                 .count = source->count,
                                 .active = source->active,
                                 .copied = (value & FORMAT_COPIED) != 0,
                                 .guest = (uint64_t)index << header_l1_shift(walk->header),
                                 .entry = source->offset + (uint64_t)index * FORMAT_ENTRY_BYTES};
    struct walk_problem problem = {.kind = WALK_L2,
                                   .entry = ref.entry,
                                   .value = value,
                                   .guest = ref.guest,
                                   .count = source->count,
                                   .active = source->active};
    int ret = 0;

    if (value & FORMAT_L1_RESERVED) {
        problem.fault = WALK_RESERVED_BITS;
        ret = walk_report(walk, &problem);
    }
    if (ret == 0 && offset == 0 && ref.copied) {
        problem.fault = WALK_COPIED_NOTHING;
        ret = walk_report(walk, &problem);
    }
    if (ret < 0 || offset == 0)
        return ret;
    if (offset % cluster_size != 0) {
        problem.fault = WALK_MISALIGNED;
        ret = walk_report(walk, &problem);
        return ret < 0 ? ret : walk_visit(walk, &ref);
    }
    ret = walk_visit(walk, &ref);
    if (ret < 0 || offset >= walk->file_bytes)
        return ret;
    return walk_l2_add(walk, &(struct walk_l2_table){.offset = offset,
                                                     .l1_index = index,
                                                     .count = source->count,
                                                     .active = source->active});
}

static int l1_take(void *context, const struct scan_range *range, const uint8_t *bytes)
{
    struct walk *walk = context;
    const struct walk_l1_source *source = &walk->l1_sources[range->tag];
    uint32_t first = (uint32_t)((range->offset - source->offset) / FORMAT_ENTRY_BYTES);

    for (uint32_t i = 0; i < range->length / FORMAT_ENTRY_BYTES; i++) {
        uint64_t value = format_get64(bytes + (size_t)i * FORMAT_ENTRY_BYTES);
        int ret = value == 0 ? 0 : l1_entry(walk, source, first + i, value);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int l1_end(struct walk *walk)
{
    walk->next_l1 = walk->next_source;
    walk->next_l1_offset = walk->next_offset;
    return 0;
}

// ---- Refcount table -----------------------------------------------------------------------------

static void from_the_start(struct walk *walk)
{
    walk->next_source = 0;
    walk->next_offset = 0;
}

static bool refcount_table_next(void *context, struct scan_range *range)
{
    struct walk *walk = context;
    const struct header *h = walk->header;

    if (walk->next_source > 0 || h->refcount_table_clusters == 0)
        return false;
    return next_part(walk, h->refcount_table_offset,
                     (uint64_t)h->refcount_table_clusters << h->cluster_bits, range);
}

static int refcount_table_entry(struct walk *walk, uint64_t entry, uint64_t index, uint64_t value)
{
    uint64_t offset = value & FORMAT_REFCOUNT_TABLE_OFFSET_MASK;
    bool reserved = (value & FORMAT_REFCOUNT_TABLE_RESERVED) != 0;

    if (reserved || offset % header_cluster_size(walk->header) != 0) {
        struct walk_problem problem = {.fault = reserved ? WALK_RESERVED_BITS : WALK_MISALIGNED,
                                       .kind = WALK_REFCOUNT_BLOCK,
                                       .entry = entry,
                                       .value = value,
                                       .guest = index,
                                       .count = 1,
                                       .active = 1};
        return walk_report(walk, &problem);
    }
    struct walk_reference ref = {.kind = WALK_REFCOUNT_BLOCK,
                                 .cluster = offset >> walk->header->cluster_bits,
                                 .clusters = 1,
                                 .count = 1,
                                 .active = 1,
                                 .guest = index,
                                 .entry = entry};
    return walk_visit(walk, &ref);
}

static int refcount_table_take(void *context, const struct scan_range *range, const uint8_t *bytes)
{
    struct walk *walk = context;
    uint64_t first = range->offset - walk->header->refcount_table_offset;

    for (size_t pos = 0; pos < range->length; pos += FORMAT_ENTRY_BYTES) {
        uint64_t value = format_get64(bytes + pos);
        int ret = value == 0 ? 0
                             : refcount_table_entry(walk, range->offset + pos,
                                                    (first + pos) / FORMAT_ENTRY_BYTES, value);
        if (ret < 0)
            return ret;
    }
    return 0;
}

// ---- Bitmap tables ------------------------------------------------------------------------------

static bool bitmaps_next(void *context, struct scan_range *range)
{
    struct walk *walk = context;

    while (walk->next_source < walk->bitmaps->count) {
        const struct bitmap *b = &walk->bitmaps->bitmaps[walk->next_source];
        if (b->table_size > 0)
            return next_part(walk, b->table_offset, (uint64_t)b->table_size * FORMAT_ENTRY_BYTES,
                             range);
        walk->next_source++;
    }
    return false;
}

static int bitmaps_take(void *context, const struct scan_range *range, const uint8_t *bytes)
{
    struct walk *walk = context;

    for (size_t pos = 0; pos < range->length; pos += FORMAT_ENTRY_BYTES) {
        uint64_t value = format_get64(bytes + pos);
        uint64_t offset = value & FORMAT_BITMAP_TABLE_ENTRY_OFFSET;
        struct walk_problem problem = {.kind = WALK_BITMAP,
                                       .entry = range->offset + pos,
                                       .value = value,
                                       .count = 1,
                                       .active = 1};
        int ret = 0;

        if (value & FORMAT_BITMAP_TABLE_ENTRY_RESERVED) {
            problem.fault = WALK_RESERVED_BITS;
            ret = walk_report(walk, &problem);
        }
        if (ret == 0 && offset % header_cluster_size(walk->header) != 0) {
            problem.fault = WALK_MISALIGNED;
            ret = walk_report(walk, &problem);
        }
        if (ret == 0 && offset != 0)
            ret = visit_structure(walk, WALK_BITMAP, offset, header_cluster_size(walk->header));
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int visit_bitmap_tables(struct walk *walk)
{
    int ret = 0;

    for (size_t i = 0; i < walk->bitmaps->count && ret == 0; i++) {
        const struct bitmap *b = &walk->bitmaps->bitmaps[i];
        ret = visit_structure(walk, WALK_BITMAP, b->table_offset,
                              (uint64_t)b->table_size * FORMAT_ENTRY_BYTES);
    }
    return ret;
}

// ---- The order of the phases --------------------------------------------------------------------

static const struct walk_phase *after_l1(struct walk *walk);
static const struct walk_phase *after_l2(struct walk *walk);
static const struct walk_phase *after_refcount_table(struct walk *walk);
static const struct walk_phase *after_all(struct walk *walk);

static const struct walk_phase phase_l1 = {
    .begin = l1_begin, .next = l1_next, .take = l1_take, .end = l1_end, .after = after_l1};
static const struct walk_phase phase_l2 = {.begin = walk_l2_begin,
                                           .next = walk_l2_next,
                                           .take = walk_l2_take,
                                           .end = walk_l2_end,
                                           .after = after_l2};
static const struct walk_phase phase_refcount_table = {.begin = from_the_start,
                                                       .next = refcount_table_next,
                                                       .take = refcount_table_take,
                                                       .after = after_refcount_table};
static const struct walk_phase phase_bitmaps = {.begin = from_the_start,
                                                .next = bitmaps_next,
                                                .take = bitmaps_take,
                                                .end = visit_bitmap_tables,
                                                .after = after_all};

static const struct walk_phase *after_l1(struct walk *walk)
{
    (void)walk;
    return &phase_l2;
}

static const struct walk_phase *after_l2(struct walk *walk)
{
    if (walk->next_l1 < walk->l1_source_count)
        return &phase_l1;
    return walk->parts & WALK_REFCOUNTS ? &phase_refcount_table : after_refcount_table(walk);
}

static const struct walk_phase *after_refcount_table(struct walk *walk)
{
    return walk->parts & WALK_OTHER ? &phase_bitmaps : NULL;
}

static const struct walk_phase *after_all(struct walk *walk)
{
    (void)walk;
    return NULL;
}

static void phase_done(void *context, int result);

static void start_phase(struct walk *walk, const struct walk_phase *phase)
{
    walk->phase = phase;
    if (phase->begin != NULL)
        phase->begin(walk);
    walk->scan.file = walk->file;
    walk->scan.context = walk;
    walk->scan.next = phase->next;
    walk->scan.take = phase->take;
    walk->scan.done = phase_done;
    scan_start(&walk->scan);
}

static void walk_finish(struct walk *walk, int result)
{
    free(walk->l1_sources);
    free(walk->l2_tables);
    walk->l1_sources = NULL;
    walk->l2_tables = NULL;
    walk->done(walk->context, result);
}

static void phase_done(void *context, int result)
{
    struct walk *walk = context;

    if (result == 0 && walk->phase->end != NULL)
        result = walk->phase->end(walk);
    const struct walk_phase *next = result == 0 ? walk->phase->after(walk) : NULL;
    if (next != NULL)
        start_phase(walk, next);
    else
        walk_finish(walk, result);
}

static void walk_begin(struct task *task)
{
    struct walk *walk = container_of(task, struct walk, task);
    int64_t size = file_size(walk->file);
    int ret = size < 0 ? (int)size : 0;

    walk->file_bytes = (uint64_t)size;
    walk->end =
        ((uint64_t)size + header_cluster_size(walk->header) - 1) >> walk->header->cluster_bits;
    walk->far = walk->end + (WALK_LOST_GROWTH_MAX >> walk->header->cluster_bits);
    if (walk->header->incompatible &
        (HEADER_INCOMPATIBLE_DATA_FILE | HEADER_INCOMPATIBLE_EXTENDED_L2))
        ret = -ENOTSUP;
    if (ret == 0)
        ret = visit_header(walk);
    if (ret < 0)
        walk_finish(walk, ret);
    else
        start_phase(walk, &phase_l1);
}

void walk_start(struct walk *walk)
{
    walk->allocated_clusters = 0;
    walk->fragmented_clusters = 0;
    walk->compressed_clusters = 0;
    walk->l1_sources = NULL;
    walk->l1_source_count = 0;
    walk->l2_tables = NULL;
    walk->l2_count = 0;
    walk->l2_capacity = 0;
    walk->l2_done = 0;
    walk->next_l1 = 0;
    walk->next_l1_offset = 0;
    walk->run.clusters = 0;
    walk->task = (struct task){.run = walk_begin};
    runq_post(walk->file->runq, &walk->task);
}
