// SPDX-License-Identifier: Apache-2.0
#include "qcow2/walk/walk_l1.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "qcow2/format/format.h"
#include "qcow2/walk/walk_l2.h"

static int compare_sources(const void *a, const void *b)
{
    const struct walk_l1_source *left = a;
    const struct walk_l1_source *right = b;

    if (left->offset != right->offset)
        return left->offset < right->offset ? -1 : 1;
    return left->entries < right->entries ? -1 : left->entries > right->entries;
}

static int report_snapshot(struct walk *walk, size_t index, uint64_t l1_offset)
{
    struct walk_problem problem = {
        .fault = WALK_SNAPSHOT_L1, .kind = WALK_L1, .entry = index, .value = l1_offset, .count = 1};

    return walk_report(walk, &problem);
}

static uint64_t source_end(const struct walk_l1_source *source)
{
    return source->offset + (uint64_t)source->entries * FORMAT_ENTRY_BYTES;
}

// Drops snapshots' L1 tables that lie behind the end of the file, or overlap the disk's table or
// one before them.
static int drop_absurd_tables(struct walk *walk)
{
    struct walk_l1_source *sources = walk->l1_sources;
    struct walk_l1_source disk = {0};
    uint64_t end = 0;
    size_t kept = 0;
    int ret = 0;

    for (size_t i = 0; i < walk->l1_source_count; i++) {
        if (sources[i].active > 0)
            disk = sources[i];
    }
    for (size_t i = 0; i < walk->l1_source_count && ret == 0; i++) {
        const struct walk_l1_source *s = &sources[i];
        bool alone = s->offset >= end && source_end(s) <= walk->file_bytes &&
                     (s->offset >= source_end(&disk) || source_end(s) <= disk.offset);
        if (s->active == 0 && s->entries > 0 && !alone) {
            ret = report_snapshot(walk, s->snapshot, s->offset);
            continue;
        }
        if (source_end(s) > end)
            end = source_end(s);
        sources[kept++] = *s;
    }
    walk->l1_source_count = kept;
    return ret;
}

int walk_l1_list(struct walk *walk)
{
    const struct header *h = walk->header;
    size_t snapshots = walk->parts & WALK_SNAPSHOTS ? walk->snapshots->count : 0;
    size_t n = 0;

    walk->l1_sources = calloc(snapshots + 1, sizeof(*walk->l1_sources));
    if (walk->l1_sources == NULL)
        return -ENOMEM;
    struct walk_l1_source *sources = walk->l1_sources;
    if (walk->parts & WALK_MAPPING)
        sources[n++] = (struct walk_l1_source){
            .offset = h->l1_offset, .entries = h->l1_size, .count = 1, .active = 1};
    for (size_t i = 0; i < snapshots; i++) {
        const struct snapshot *s = &walk->snapshots->snapshots[i];
        if (s->l1_valid) {
            sources[n++] = (struct walk_l1_source){
                .offset = s->l1_offset, .entries = s->l1_size, .snapshot = (uint32_t)i, .count = 1};
            continue;
        }
        int ret = report_snapshot(walk, i, s->l1_offset);
        if (ret < 0)
            return ret;
    }
    qsort(sources, n, sizeof(*sources), compare_sources);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (kept > 0 && compare_sources(&sources[kept - 1], &sources[i]) == 0) {
            sources[kept - 1].count += sources[i].count;
            sources[kept - 1].active += sources[i].active;
        } else {
            sources[kept++] = sources[i];
        }
    }
    walk->l1_source_count = kept;
    return walk->parts & WALK_ABSURD ? 0 : drop_absurd_tables(walk);
}
