// SPDX-License-Identifier: Apache-2.0
#include "qcow2/walk/walk_l2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/format/format.h"

#define LIST_ROOM_FIRST 1024 // tables that the list has room for at first

// ---- The list -----------------------------------------------------------------------------------

int walk_l2_add(struct walk *walk, const struct walk_l2_table *table)
{
    if (walk->l2_count == walk->l2_capacity) {
        size_t capacity = walk->l2_capacity == 0 ? LIST_ROOM_FIRST : 2 * walk->l2_capacity;
        struct walk_l2_table *tables =
            realloc(walk->l2_tables, capacity * sizeof(*walk->l2_tables));
        if (tables == NULL)
            return -ENOMEM;
        walk->l2_tables = tables;
        walk->l2_capacity = capacity;
    }
    walk->l2_tables[walk->l2_count++] = *table;
    return 0;
}

static int compare_offsets(const void *a, const void *b)
{
    uint64_t left = ((const struct walk_l2_table *)a)->offset;
    uint64_t right = ((const struct walk_l2_table *)b)->offset;

    return left < right ? -1 : left > right;
}

static uint32_t add_saturating(uint32_t a, uint32_t b)
{
    uint32_t sum;

    return __builtin_add_overflow(a, b, &sum) ? UINT32_MAX : sum;
}

// Sorts the list by offset and merges equal tables.
static void merge_list(struct walk *walk)
{
    struct walk_l2_table *tables = walk->l2_tables;
    bool sorted = true;
    size_t kept = 0;

    for (size_t i = 1; i < walk->l2_count && sorted; i++)
        sorted = tables[i - 1].offset < tables[i].offset;
    if (sorted)
        return;
    qsort(tables, walk->l2_count, sizeof(*tables), compare_offsets);
    for (size_t i = 1; i < walk->l2_count; i++) {
        if (tables[i].offset != tables[kept].offset) {
            tables[++kept] = tables[i];
            continue;
        }
        if (tables[kept].active == 0 && tables[i].active > 0)
            tables[kept].l1_index = tables[i].l1_index;
        tables[kept].count = add_saturating(tables[kept].count, tables[i].count);
        tables[kept].active = add_saturating(tables[kept].active, tables[i].active);
    }
    walk->l2_count = kept + 1;
}

bool walk_l2_full(struct walk *walk)
{
    if (walk->l2_count < WALK_L2_LIST_MAX)
        return false;
    merge_list(walk);
    // Reading some tables twice costs less than merging again for every few tables.
    return walk->l2_count >= WALK_L2_LIST_MAX / 2;
}

// ---- Reading ------------------------------------------------------------------------------------

void walk_l2_begin(struct walk *walk)
{
    merge_list(walk);
    walk->next_source = 0;
    walk->next_offset = 0;
    walk->l2_taken = SIZE_MAX;
}

bool walk_l2_next(void *context, struct scan_range *range)
{
    struct walk *walk = context;
    const struct walk_l2_table *tables = walk->l2_tables;
    uint64_t cluster_size = header_cluster_size(walk->header);
    size_t at = walk->next_source;

    if (at == walk->l2_count)
        return false;
    uint64_t length = cluster_size - walk->next_offset;
    if (length > SCAN_RANGE_MAX)
        length = SCAN_RANGE_MAX;
    range->tag = at;
    range->offset = tables[at].offset + walk->next_offset;
    walk->next_offset += length;
    if (walk->next_offset == cluster_size) {
        walk->next_offset = 0;
        at++;
        while (at < walk->l2_count && tables[at].offset == range->offset + length &&
               length + cluster_size <= SCAN_RANGE_MAX) {
            length += cluster_size;
            at++;
        }
    }
    range->length = (size_t)length;
    walk->next_source = at;
    return true;
}

// Updates the statistics with data clusters of the disk that are contiguous in the file.
static void note_data(struct walk *walk, uint64_t offset, uint64_t clusters, uint32_t active)
{
    if (walk->contiguous != 0 && offset != walk->contiguous)
        walk->fragmented_clusters += active;
    walk->contiguous = offset + (clusters << walk->header->cluster_bits);
    walk->allocated_clusters += clusters * active;
}

// Visits the open run of data clusters, if there is one.
static int end_run(struct walk *walk)
{
    struct walk_reference run = walk->run;

    if (run.clusters == 0)
        return 0;
    walk->run.clusters = 0;
    note_data(walk, run.cluster << walk->header->cluster_bits, run.clusters, run.active);
    return walk_visit(walk, &run);
}

// Sets the clusters that the bytes from offset on touch.
static void set_clusters(const struct walk *walk, struct walk_reference *ref, uint64_t offset,
                         uint64_t bytes)
{
    ref->cluster = offset >> walk->header->cluster_bits;
    ref->clusters = ((offset + bytes - 1) >> walk->header->cluster_bits) - ref->cluster + 1;
}

static int compressed_entry(struct walk *walk, uint64_t value, struct walk_reference *ref)
{
    unsigned bits = walk->header->cluster_bits;

    ref->kind = WALK_COMPRESSED;
    set_clusters(walk, ref, format_compressed_offset(value, bits),
                 format_compressed_length(value, bits));
    walk->allocated_clusters += ref->active;
    walk->compressed_clusters += ref->active;
    walk->fragmented_clusters += ref->active;
    if (value & FORMAT_COPIED) {
        struct walk_problem problem = {.fault = WALK_COMPRESSED_FLAGS,
                                       .kind = WALK_COMPRESSED,
                                       .entry = ref->entry,
                                       .value = value,
                                       .guest = ref->guest,
                                       .count = ref->count,
                                       .active = ref->active};
        int ret = walk_report(walk, &problem);
        if (ret < 0)
            return ret;
    }
    return walk_visit(walk, ref);
}

// Handles an entry that is not zero and does not extend the run.
static int other_entry(struct walk *walk, uint64_t value, struct walk_reference *ref)
{
    struct walk_problem problem = {.kind = WALK_DATA,
                                   .entry = ref->entry,
                                   .value = value,
                                   .guest = ref->guest,
                                   .count = ref->count,
                                   .active = ref->active};
    uint64_t offset = value & FORMAT_L2_OFFSET_MASK;
    bool sound = true;
    int ret = end_run(walk);

    if (ret < 0)
        return ret;
    if (value & FORMAT_COMPRESSED)
        return compressed_entry(walk, value, ref);
    if (value & FORMAT_L2_RESERVED) {
        problem.fault = WALK_RESERVED_BITS;
        sound = false;
        ret = walk_report(walk, &problem);
    }
    if (ret == 0 && walk->header->version < 3 && value & FORMAT_L2_ZERO) {
        problem.fault = WALK_ZERO_FLAG_V2;
        sound = false;
        ret = walk_report(walk, &problem);
    }
    if (ret < 0 || offset == 0)
        return ret;
    if (offset % header_cluster_size(walk->header) != 0) {
        problem.fault = WALK_MISALIGNED;
        sound = false;
        ret = walk_report(walk, &problem);
        if (ret < 0)
            return ret;
    }

    ref->kind = WALK_DATA;
    ref->copied = (value & FORMAT_COPIED) != 0;
    set_clusters(walk, ref, offset, header_cluster_size(walk->header));
    // Each unsound entry is reported on its own, so none joins a run.
    if (!sound) {
        note_data(walk, offset, 1, ref->active);
        return walk_visit(walk, ref);
    }
    walk->run = *ref;
    walk->run_value = value + header_cluster_size(walk->header);
    return 0;
}

// Handles the entries of one table from index on.
static int take_entries(struct walk *walk, const struct walk_l2_table *table, uint64_t index,
                        const uint8_t *bytes, size_t count)
{
    uint64_t cluster_size = header_cluster_size(walk->header);
    uint64_t guest = ((uint64_t)table->l1_index << header_l1_shift(walk->header)) +
                     (index << walk->header->cluster_bits);

    for (size_t i = 0; i < count; i++) {
        uint64_t value = format_get64(bytes + i * FORMAT_ENTRY_BYTES);
        int ret = 0;

        if (walk->run.clusters > 0 && value == walk->run_value) {
            walk->run.clusters++;
            walk->run.entries++;
            walk->run_value += cluster_size;
        } else if (value == 0) {
            ret = end_run(walk);
        } else {
            struct walk_reference ref = {
                .entries = 1,
                .count = table->count,
                .active = table->active,
                .guest = guest + (i << walk->header->cluster_bits),
                .entry = table->offset + (index + i) * FORMAT_ENTRY_BYTES,
            };
            ret = other_entry(walk, value, &ref);
        }
        if (ret < 0)
            return ret;
    }
    return 0;
}

int walk_l2_take(void *context, const struct scan_range *range, const uint8_t *bytes)
{
    struct walk *walk = context;
    uint64_t cluster_size = header_cluster_size(walk->header);
    size_t at = range->tag;
    size_t pos = 0; // bytes of the range

    while (pos < range->length) {
        const struct walk_l2_table *table = &walk->l2_tables[at];
        uint64_t within = range->offset + pos - table->offset;
        size_t length = range->length - pos;
        if (length > cluster_size - within)
            length = (size_t)(cluster_size - within);

        // The beginning of this table, or whole tables before it, may have been in a hole and
        // skipped.
        if (walk->l2_taken != at) {
            int ret = end_run(walk);
            if (ret < 0)
                return ret;
            walk->l2_taken = at;
            walk->contiguous = 0;
        }
        int ret = take_entries(walk, table, within / FORMAT_ENTRY_BYTES, bytes + pos,
                               length / FORMAT_ENTRY_BYTES);
        if (ret < 0)
            return ret;
        pos += length;
        at++;
    }
    if (walk->visitor->progress != NULL)
        walk->visitor->progress(walk->context, walk->l2_done + range->tag,
                                walk->l2_done + walk->l2_count);
    return 0;
}

int walk_l2_end(struct walk *walk)
{
    walk->l2_done += walk->l2_count;
    walk->l2_count = 0;
    return end_run(walk);
}
