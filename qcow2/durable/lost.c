// SPDX-License-Identifier: Apache-2.0
#include "qcow2/durable/lost.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/file.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/format.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/header.h"
#include "qcow2/format/l1.h"
#include "qcow2/mapping/cache.h"

struct comparison {
    struct image *image;
    struct lost *lost;
    unsigned char *memory; // a piece of a table each
    unsigned char *disk;
};

static void add_cluster(struct comparison *c, uint64_t cluster)
{
    const struct image *image = c->image;
    struct lost *lost = c->lost;
    uint64_t first = cluster << image->geometry.cluster_bits;
    uint64_t end = first + image->geometry.cluster_size;

    // A table may map clusters beyond the end of the disk.
    if (first >= image->size)
        return;
    if (end > image->size)
        end = image->size;
    if (lost->clusters == 0 || first < lost->first)
        lost->first = first;
    if (end > lost->end)
        lost->end = end;
    lost->clusters++;
    lost->bytes += end - first;
}

// Reads a piece of a table from the file; all zeros when there is no table.
static int read_piece(struct comparison *c, unsigned char *to, uint64_t table, uint64_t at)
{
    size_t bytes = c->image->geometry.piece_bytes;

    if (table != 0)
        return file_read_blocking(c->image->file, to, table + at, bytes);
    memset(to, 0, bytes);
    return 0;
}

// Compares the piece at byte at of the table that maps guest clusters from first on.
static void compare_piece(struct comparison *c, uint64_t memory, uint64_t disk, uint64_t at,
                          uint64_t first)
{
    const struct geometry *g = &c->image->geometry;
    const struct slice *slice = NULL;
    int result = 0;

    if (memory != 0)
        slice = cache_peek(c->image->cache, memory + at, g->piece_bits);
    // The disk has this table, and memory has no change of it.
    if (memory == disk && (!slice || !slice_dirty(slice)))
        return;
    if (slice)
        memcpy(c->memory, slice->entries, g->piece_bytes);
    else
        result = read_piece(c, c->memory, memory, at);
    if (result == 0)
        result = read_piece(c, c->disk, disk, at);
    if (result < 0) {
        c->lost->error = result;
        return;
    }
    for (size_t i = 0; i < g->piece_bytes / FORMAT_ENTRY_BYTES; i++) {
        uint64_t entry = format_get64(c->memory + i * FORMAT_ENTRY_BYTES);
        uint64_t other = format_get64(c->disk + i * FORMAT_ENTRY_BYTES);

        if ((entry ^ other) & ~FORMAT_COPIED)
            add_cluster(c, first + at / FORMAT_ENTRY_BYTES + i);
    }
}

static void compare_tables(struct comparison *c, const unsigned char *l1)
{
    const struct image *image = c->image;
    uint64_t entries = image->geometry.cluster_size / FORMAT_ENTRY_BYTES;

    for (uint64_t i = 0; i < image->l1.size; i++) {
        uint64_t memory = image->l1.entries[i] & FORMAT_L1_OFFSET_MASK;
        uint64_t disk = format_get64(l1 + i * FORMAT_ENTRY_BYTES) & FORMAT_L1_OFFSET_MASK;

        if (memory == 0 && disk == 0)
            continue;
        for (uint64_t at = 0; at < image->geometry.cluster_size; at += image->geometry.piece_bytes)
            compare_piece(c, memory, disk, at, i * entries);
    }
}

void lost_count(struct image *image, struct lost *lost)
{
    struct comparison c = {.image = image, .lost = lost};
    size_t l1_bytes = image->l1.size * FORMAT_ENTRY_BYTES;

    *lost = (struct lost){0};
    if (image->cache->dirty_count == 0 && image->l1.dirty_count == 0)
        return;
    unsigned char *l1 = malloc(l1_bytes + 1);
    c.memory = malloc(image->geometry.piece_bytes);
    c.disk = malloc(image->geometry.piece_bytes);
    if (!l1 || !c.memory || !c.disk)
        lost->error = -ENOMEM;
    else
        lost->error = file_read_blocking(image->file, l1, image->header.l1_offset, l1_bytes);
    if (lost->error == 0)
        compare_tables(&c, l1);
    free(l1);
    free(c.memory);
    free(c.disk);
}
