// SPDX-License-Identifier: Apache-2.0
// counts.h: one number a cluster, compact where most are 0 or 1: a bitmap in chunks, which exist
// where something was counted and become arrays of bytes or words where numbers are larger. 1 TiB
// of 64 KiB clusters that are each referenced once takes 2 MiB.
#ifndef LAZYCOW_QCOW2_BASE_COUNTS_H
#define LAZYCOW_QCOW2_BASE_COUNTS_H

#include <stddef.h>
#include <stdint.h>

#define COUNTS_CHUNK_BITS 15 // clusters of a chunk, as a power of two: a page of bits
#define COUNTS_CHUNK_CLUSTERS (1ull << COUNTS_CHUNK_BITS)

// More clusters are refused: 16 TiB of the smallest ones, 2 PiB of 64 KiB. The directory of the
// chunks takes 16 MiB then.
#define COUNTS_CLUSTERS_MAX (1ull << 35)

struct counts_chunk {
    uint8_t bits; // of a count: 0 (all are 0, nothing is stored), 1, 8 or 32
    uint8_t *data;
};

struct counts {
    uint64_t clusters;
    struct counts_chunk *chunks;
    size_t chunk_count;
};

// Counts of so many clusters, all 0. Returns 0, -EFBIG beyond COUNTS_CLUSTERS_MAX, or -ENOMEM.
int counts_init(struct counts *c, uint64_t clusters);
// A zeroed struct is fine.
void counts_free(struct counts *c);

// Adds by to n clusters from first on, all below c->clusters. Counts stop at UINT32_MAX. Returns 0
// or -ENOMEM, with some of them added then.
int counts_add(struct counts *c, uint64_t first, uint64_t n, uint32_t by);

uint32_t counts_get(const struct counts *c, uint64_t cluster);

// Sets one count, whatever it was. Returns 0 or -ENOMEM.
int counts_set(struct counts *c, uint64_t cluster, uint32_t value);

// The 64 clusters from first (a multiple of 64) as a bitmap of those that are 1, where all of them
// are 0 or 1; returns false where they are not known to be.
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

// The first cluster at or after from whose count is not 0; c->clusters if there is none.
uint64_t counts_next(const struct counts *c, uint64_t from);

#endif
