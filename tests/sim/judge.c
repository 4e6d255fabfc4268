// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/judge.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/format/format.h"
#include "qcow2/format/header.h"

// Clusters beyond the end of the file whose refcounts are judged.
#define BEYOND_END 2048u

enum use { USE_HEADER, USE_TABLE, USE_L2, USE_REFCOUNTS, USE_DATA, USE_COMPRESSED, USE_BITMAP };

struct cluster {
    uint32_t references;
    uint32_t active; // those of count that come from the disk itself
    uint8_t uses;    // bit an enum use
};

struct judge {
    const struct reader *reader;
    struct judge_result *result;
    struct cluster *clusters;
    uint64_t count;
    uint64_t in_file; // clusters
    bool strict;
    bool dirty;
};

__attribute__((format(printf, 2, 3))) static void corrupt(struct judge *judge, const char *format,
                                                          ...)
{
    va_list args;

    if (judge->result->corruptions++ > 0)
        return;
    va_start(args, format);
    vsnprintf(judge->result->text, sizeof(judge->result->text), format, args);
    va_end(args);
}

static struct cluster *cluster_at(struct judge *judge, uint64_t index)
{
    if (index >= judge->count) {
        uint64_t count = index + 1 + judge->count / 2;

        judge->clusters = realloc(judge->clusters, count * sizeof(*judge->clusters));
        if (!judge->clusters)
            abort();
        memset(judge->clusters + judge->count, 0,
               (count - judge->count) * sizeof(*judge->clusters));
        judge->count = count;
    }
    return &judge->clusters[index];
}

static void refer(struct judge *judge, uint64_t offset, uint64_t bytes, enum use use, bool active)
{
    const struct reader *r = judge->reader;
    uint64_t first = offset >> r->cluster_bits;
    uint64_t end = (offset + bytes + r->cluster_size - 1) >> r->cluster_bits;

    if (offset >= MEMORY_BYTES_MAX || bytes > MEMORY_BYTES_MAX) {
        corrupt(judge, "a reference to offset %llu", (unsigned long long)offset);
        return;
    }
    judge->result->beyond += end > judge->in_file;
    for (uint64_t i = first; i < end; i++) {
        struct cluster *cluster = cluster_at(judge, i);

        cluster->references++;
        cluster->active += active;
        cluster->uses |= (uint8_t)(1u << use);
    }
    if (end > judge->result->end)
        judge->result->end = end;
}

// ---- Counting

static void count_entry(struct judge *judge, uint64_t entry, bool active)
{
    const struct reader *r = judge->reader;
    uint64_t offset = entry & FORMAT_L2_OFFSET_MASK;

    if (entry & FORMAT_COMPRESSED) {
        refer(judge, format_compressed_offset(entry, r->cluster_bits),
              format_compressed_length(entry, r->cluster_bits), USE_COMPRESSED, active);
        return;
    }
    if (offset & (r->cluster_size - 1))
        corrupt(judge, "the L2 entry %016llx is not aligned", (unsigned long long)entry);
    else if (offset)
        refer(judge, offset, r->cluster_size, USE_DATA, active);
}

static void count_l1(struct judge *judge, const struct reader_l1 *l1, bool active)
{
    const struct reader *r = judge->reader;
    unsigned char *table = malloc(r->cluster_size);

    if (!table)
        abort();
    if (l1->size > 0)
        refer(judge, l1->offset, l1->size * 8ull, USE_TABLE, active);
    for (uint64_t i = 0; i < l1->size; i++) {
        uint64_t offset = reader_read64(r, l1->offset + i * 8) & FORMAT_L1_OFFSET_MASK;

        if (offset & (r->cluster_size - 1)) {
            corrupt(judge, "L1 entry %llu is not aligned", (unsigned long long)i);
            continue;
        }
        if (offset == 0)
            continue;
        refer(judge, offset, r->cluster_size, USE_L2, active);
        memory_read(r->memory, table, offset, r->cluster_size);
        for (uint64_t k = 0; k < r->cluster_size / 8; k++) {
            uint64_t entry = format_get64(table + k * 8);

            if (entry)
                count_entry(judge, entry, active);
        }
    }
    free(table);
}

static void count_refcounts(struct judge *judge)
{
    const struct reader *r = judge->reader;
    uint64_t bytes = (uint64_t)r->refcount_table_clusters << r->cluster_bits;

    unsigned char *table = malloc(bytes + 1);

    if (!table)
        abort();
    memory_read(r->memory, table, r->refcount_table_offset, bytes);
    refer(judge, r->refcount_table_offset, bytes, USE_REFCOUNTS, true);
    for (uint64_t i = 0; i < bytes / 8; i++) {
        uint64_t block = format_get64(table + i * 8) & FORMAT_REFCOUNT_TABLE_OFFSET_MASK;

        if (block & (r->cluster_size - 1))
            corrupt(judge, "refcount table entry %llu is not aligned", (unsigned long long)i);
        else if (block)
            refer(judge, block, r->cluster_size, USE_REFCOUNTS, true);
    }
    free(table);
}

// Counts the directory, and the tables and bits of the bitmaps in it.
static void count_bitmaps(struct judge *judge)
{
    const struct reader *r = judge->reader;
    uint64_t at = r->bitmap_directory;

    if (r->bitmap_count > 0)
        refer(judge, at, r->bitmap_bytes, USE_BITMAP, true);
    for (uint32_t i = 0; i < r->bitmap_count; i++) {
        uint64_t table = reader_read64(r, at + FORMAT_BITMAP_TABLE_OFFSET);
        // The u64 reads also hold the field behind each length: the flags, and the length of the
        // extra data.
        uint64_t entries = reader_read64(r, at + FORMAT_BITMAP_TABLE_SIZE) >> 32;
        uint64_t name = reader_read64(r, at + FORMAT_BITMAP_NAME_LENGTH) >> 48;

        refer(judge, table, entries * 8, USE_BITMAP, true);
        for (uint64_t k = 0; k < entries; k++) {
            uint64_t bits = reader_read64(r, table + k * 8) & FORMAT_BITMAP_TABLE_ENTRY_OFFSET;

            if (bits != 0)
                refer(judge, bits, r->cluster_size, USE_BITMAP, true);
        }
        at += (FORMAT_BITMAP_ENTRY_BYTES + name + 7) / 8 * 8;
    }
}

static void count_all(struct judge *judge)
{
    const struct reader *r = judge->reader;

    refer(judge, 0, r->cluster_size, USE_HEADER, true);
    count_l1(judge, &r->active, true);
    for (uint32_t i = 0; i < r->snapshot_count; i++)
        count_l1(judge, &r->snapshots[i], false);
    if (r->snapshot_count > 0)
        refer(judge, r->snapshot_table_offset, r->snapshot_table_bytes, USE_TABLE, true);
    count_bitmaps(judge);
    count_refcounts(judge);
}

// ---- Judging

static void judge_copied(struct judge *judge, const char *what, uint64_t entry)
{
    uint64_t offset = entry & FORMAT_L2_OFFSET_MASK;
    bool copied = (entry & FORMAT_COPIED) != 0;

    if (offset == 0 || offset & (judge->reader->cluster_size - 1))
        return;
    uint64_t index = offset >> judge->reader->cluster_bits;
    uint32_t references = cluster_at(judge, index)->references;
    bool one = index < judge->in_file && reader_refcount(judge->reader, index) == 1;
    judge->result->flags += copied != one;
    if (copied && references != 1)
        corrupt(judge, "%s %016llx says COPIED, but there are %u references", what,
                (unsigned long long)entry, references);
    if (!copied && references == 1 && judge->strict)
        corrupt(judge, "%s %016llx does not say COPIED, but is the only reference", what,
                (unsigned long long)entry);
}

static void judge_flags(struct judge *judge)
{
    const struct reader *r = judge->reader;
    unsigned char *table = malloc(r->cluster_size);

    if (!table)
        abort();
    for (uint64_t i = 0; i < r->active.size; i++) {
        uint64_t l1_entry = reader_read64(r, r->active.offset + i * 8);
        uint64_t offset = l1_entry & FORMAT_L1_OFFSET_MASK;

        judge_copied(judge, "the L1 entry", l1_entry);
        if (offset == 0 || offset & (r->cluster_size - 1))
            continue;
        memory_read(r->memory, table, offset, r->cluster_size);
        for (uint64_t k = 0; k < r->cluster_size / 8; k++) {
            uint64_t entry = format_get64(table + k * 8);

            if (entry & FORMAT_COMPRESSED && entry & FORMAT_COPIED)
                corrupt(judge, "the compressed entry %016llx says COPIED",
                        (unsigned long long)entry);
            else if (!(entry & FORMAT_COMPRESSED))
                judge_copied(judge, "the L2 entry", entry);
        }
    }
    free(table);
}

static void judge_cluster(struct judge *judge, uint64_t index, const struct cluster *cluster)
{
    unsigned uses = cluster->uses;
    uint64_t offset = index << judge->reader->cluster_bits;

    if (uses & (uses - 1))
        corrupt(judge, "the cluster at offset %llu has different uses (%#x)",
                (unsigned long long)offset, uses);
    if (cluster->active > 1 && uses != 1u << USE_COMPRESSED)
        corrupt(judge, "the disk refers %u times to the cluster at offset %llu", cluster->active,
                (unsigned long long)offset);
}

// block: offset of the block with the refcount, or 0.
static void judge_refcount(struct judge *judge, uint64_t block, uint64_t index)
{
    struct judge_result *result = judge->result;
    uint64_t offset = index << judge->reader->cluster_bits;
    uint64_t count = block ? reader_refcount_in(judge->reader, block, index) : 0;
    uint64_t references = index < judge->count ? judge->clusters[index].references : 0;

    if (count < references && !judge->dirty)
        corrupt(judge, "the cluster at offset %llu has refcount %llu and %llu references",
                (unsigned long long)offset, (unsigned long long)count,
                (unsigned long long)references);
    result->too_low += count < references && index < judge->in_file;
    result->leaks_in_file += count > references && index < judge->in_file;
    if (count > references && !judge->dirty && result->leaks++ == 0)
        result->first_leak = offset;
}

static void judge_refcounts(struct judge *judge)
{
    const struct reader *r = judge->reader;
    uint64_t end = judge->in_file;

    if (judge->result->end > end && !judge->dirty)
        corrupt(judge, "the file ends at %llu, references go to %llu, and the image is not dirty",
                (unsigned long long)r->memory->size,
                (unsigned long long)(judge->result->end << r->cluster_bits));
    if (end < judge->result->end)
        end = judge->result->end;
    // These refcounts may belong to clusters that were taken, with a growth of the file that was
    // lost.
    end += BEYOND_END;
    uint64_t per_block = r->cluster_size * 8 >> r->refcount_order;
    uint64_t block = 0;
    for (uint64_t i = 0; i < end; i++) {
        if (i % per_block == 0)
            block = reader_refcount_block(r, i);
        judge_refcount(judge, block, i);
    }
}

void judge_tables(const struct reader *reader, bool strict, struct judge_result *result)
{
    struct judge judge = {.reader = reader,
                          .in_file = (reader->memory->size + reader->cluster_size - 1) >>
                                     reader->cluster_bits,
                          .result = result,
                          .strict = strict,
                          .dirty = (reader->incompatible & HEADER_INCOMPATIBLE_DIRTY) != 0};

    *result = (struct judge_result){0};
    count_all(&judge);
    for (uint64_t i = 0; i < judge.count; i++)
        judge_cluster(&judge, i, &judge.clusters[i]);
    judge_flags(&judge);
    judge_refcounts(&judge);
    if (strict && judge.dirty)
        corrupt(&judge, "the dirty bit is set");
    free(judge.clusters);
}

// ---- The order in which flags are put right

static void judge_changed(struct judge *judge, uint64_t before, uint64_t after)
{
    const struct reader *r = judge->reader;
    uint64_t index = (after & FORMAT_L2_OFFSET_MASK) >> r->cluster_bits;

    if (!((before ^ after) & FORMAT_COPIED) || after & FORMAT_COMPRESSED || index >= judge->in_file)
        return;
    if (reader_refcount(r, index) != cluster_at(judge, index)->references)
        corrupt(judge, "the entry %016llx has a new flag, but its refcount is still wrong",
                (unsigned long long)after);
}

static void judge_changed_table(struct judge *judge, const struct reader *before, uint64_t offset)
{
    const struct reader *r = judge->reader;

    for (uint64_t at = offset; at < offset + r->cluster_size; at += 8)
        judge_changed(judge, reader_read64(before, at), reader_read64(r, at));
}

void judge_flag_order(const struct reader *before, const struct reader *after,
                      struct judge_result *result)
{
    struct judge judge = {.reader = after,
                          .result = result,
                          .in_file = (after->memory->size + after->cluster_size - 1) >>
                                     after->cluster_bits};

    *result = (struct judge_result){0};
    count_all(&judge);
    // Other faults of these images are judged elsewhere.
    *result = (struct judge_result){0};
    for (uint64_t i = 0; i < after->active.size; i++) {
        uint64_t entry = reader_read64(after, after->active.offset + i * 8);
        uint64_t table = entry & FORMAT_L1_OFFSET_MASK;

        judge_changed(&judge, reader_read64(before, before->active.offset + i * 8), entry);
        if (table != 0 && (table & (after->cluster_size - 1)) == 0)
            judge_changed_table(&judge, before, table);
    }
    free(judge.clusters);
}
