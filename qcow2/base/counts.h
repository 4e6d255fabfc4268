// SPDX-License-Identifier: Apache-2.0
// counts.h: one count for each cluster, compact while most counts are 0 or 1. The clusters are
// divided into chunks. A chunk exists once a cluster of it was counted. It begins as a bitmap, and
// becomes an array of bytes or words when a count does not fit. 1 TiB of 64 KiB clusters that are
// each referenced once takes 2 MiB.
#ifndef LAZYCOW_QCOW2_BASE_COUNTS_H
#define LAZYCOW_QCOW2_BASE_COUNTS_H

#include <stddef.h>
#include <stdint.h>

// Clusters of a chunk, as a power of two: the bitmap of a chunk fills one page of memory.
#define COUNTS_CHUNK_BITS 15
#define COUNTS_CHUNK_CLUSTERS (1ull << COUNTS_CHUNK_BITS)

// Largest number of clusters: 16 TiB of the smallest clusters, 2 PiB of 64 KiB clusters. The
// directory of chunks takes 16 MiB then.
#define COUNTS_CLUSTERS_MAX (1ull << 35)

struct counts_chunk {
    // Width of a count in bits: 1, 8 or 32; 0 while all counts are 0 and nothing is stored.
    uint8_t bits;
    uint8_t *data;
};

struct counts {
    uint64_t clusters;
    struct counts_chunk *chunks;
    size_t chunk_count;
};

// Prepares clusters counts, all 0. Returns 0, -EFBIG beyond COUNTS_CLUSTERS_MAX, or -ENOMEM.
int counts_init(struct counts *c, uint64_t clusters);
// Frees the chunks. c may be zeroed.
void counts_free(struct counts *c);

// Adds by to the counts of n clusters from first on, all of them below c->clusters. Counts saturate
// at UINT32_MAX. Returns 0 or -ENOMEM; after an error some of the counts are changed.
int counts_add(struct counts *c, uint64_t first, uint64_t n, uint32_t by);

uint32_t counts_get(const struct counts *c, uint64_t cluster);

// Sets one count. Returns 0 or -ENOMEM.
int counts_set(struct counts *c, uint64_t cluster, uint32_t value);

// Stores the counts of the 64 clusters from first on (a multiple of 64) in *word, one bit a
// cluster. Returns false when a count may be larger than 1.
static inline int counts_word(const struct counts *c, uint64_t first, uint64_t *word)
{
    const struct counts_chunk *chunk = &c->chunks[first >> COUNTS_CHUNK_BITS];

    if (chunk->bits > 1)
        return 0;
    *word = chunk->bits == 0 ? 0
                             : ((const uint64_t *)(const void *)
                                    chunk->data)[(first & (COUNTS_CHUNK_CLUSTERS - 1)) / 64];
    return 1;
}

// Returns the first cluster at or after from whose count is not 0, or c->clusters if there is none.
uint64_t counts_next(const struct counts *c, uint64_t from);

#endif
