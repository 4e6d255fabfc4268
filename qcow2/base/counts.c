// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/counts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int counts_init(struct counts *c, uint64_t clusters)
{
    memset(c, 0, sizeof(*c));
    if (clusters > COUNTS_CLUSTERS_MAX)
        return -EFBIG;
    c->clusters = clusters;
    c->chunk_count = (size_t)((clusters + COUNTS_CHUNK_CLUSTERS - 1) >> COUNTS_CHUNK_BITS);
    // One entry more than needed, so that calloc(0) never returns a NULL that looks like -ENOMEM.
    c->chunks = calloc(c->chunk_count + 1, sizeof(*c->chunks));
    return c->chunks == NULL ? -ENOMEM : 0;
}

void counts_free(struct counts *c)
{
    for (size_t i = 0; i < c->chunk_count; i++)
        free(c->chunks[i].data);
    free(c->chunks);
    memset(c, 0, sizeof(*c));
}

static uint64_t *words(const struct counts_chunk *chunk)
{
    return (uint64_t *)(void *)chunk->data;
}

static uint32_t chunk_get(const struct counts_chunk *chunk, size_t i)
{
    switch (chunk->bits) {
    case 0:
        return 0;
    case 1:
        return words(chunk)[i / 64] >> i % 64 & 1;
    case 8:
        return chunk->data[i];
    default:
        return ((const uint32_t *)(const void *)chunk->data)[i];
    }
}

// Gives the chunk counts of more bits. bits is larger than chunk->bits.
static int chunk_widen(struct counts_chunk *chunk, uint8_t bits)
{
    uint8_t *data = calloc(COUNTS_CHUNK_CLUSTERS * bits / 8, 1);
    if (data == NULL)
        return -ENOMEM;
    if (chunk->bits > 0) {
        for (size_t i = 0; i < COUNTS_CHUNK_CLUSTERS; i++) {
            uint32_t value = chunk_get(chunk, i);
            if (bits == 8)
                data[i] = (uint8_t)value;
            else
                ((uint32_t *)(void *)data)[i] = value;
        }
    }
    free(chunk->data);
    chunk->data = data;
    chunk->bits = bits;
    return 0;
}

static int chunk_set(struct counts_chunk *chunk, size_t i, uint32_t value)
{
    uint8_t bits = value > UINT8_MAX ? 32 : value > 1 ? 8 : 1;

    if (bits > chunk->bits) {
        int ret = chunk_widen(chunk, bits);
        if (ret < 0)
            return ret;
    }
    switch (chunk->bits) {
    case 1:
        words(chunk)[i / 64] = (words(chunk)[i / 64] & ~(1ull << i % 64)) | (uint64_t)value
                                                                                << i % 64;
        break;
    case 8:
        chunk->data[i] = (uint8_t)value;
        break;
    default:
        ((uint32_t *)(void *)chunk->data)[i] = value;
        break;
    }
    return 0;
}

// Adds 1 to up to n clusters of a bitmap. Stops before the first cluster whose count is not 0.
// Returns how many clusters it counted.
static size_t bitmap_add(struct counts_chunk *chunk, size_t first, size_t n)
{
    size_t done = 0;

    while (done < n) {
        size_t at = first + done;
        size_t span = 64 - at % 64;
        if (span > n - done)
            span = n - done;
        uint64_t mask = (span == 64 ? ~0ull : (1ull << span) - 1) << at % 64;
        uint64_t *word = &words(chunk)[at / 64];
        if (*word & mask)
            break;
        *word |= mask;
        done += span;
    }
    return done;
}

static int chunk_add(struct counts_chunk *chunk, size_t first, size_t n, uint32_t by)
{
    size_t done = 0;

    if (chunk->bits == 0) {
        int ret = chunk_widen(chunk, 1);
        if (ret < 0)
            return ret;
    }
    if (chunk->bits == 1 && by == 1)
        done = bitmap_add(chunk, first, n);
    for (; done < n; done++) {
        uint32_t value = chunk_get(chunk, first + done);
        if (__builtin_add_overflow(value, by, &value))
            value = UINT32_MAX;
        int ret = chunk_set(chunk, first + done, value);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int counts_add(struct counts *c, uint64_t first, uint64_t n, uint32_t by)
{
    while (n > 0) {
        size_t at = first & (COUNTS_CHUNK_CLUSTERS - 1);
        size_t span = COUNTS_CHUNK_CLUSTERS - at;
        if (span > n)
            span = (size_t)n;
        int ret = chunk_add(&c->chunks[first >> COUNTS_CHUNK_BITS], at, span, by);
        if (ret < 0)
            return ret;
        first += span;
        n -= span;
    }
    return 0;
}

uint32_t counts_get(const struct counts *c, uint64_t cluster)
{
    return chunk_get(&c->chunks[cluster >> COUNTS_CHUNK_BITS],
                     cluster & (COUNTS_CHUNK_CLUSTERS - 1));
}

int counts_set(struct counts *c, uint64_t cluster, uint32_t value)
{
    return chunk_set(&c->chunks[cluster >> COUNTS_CHUNK_BITS],
                     cluster & (COUNTS_CHUNK_CLUSTERS - 1), value);
}

uint64_t counts_next(const struct counts *c, uint64_t from)
{
    while (from < c->clusters) {
        const struct counts_chunk *chunk = &c->chunks[from >> COUNTS_CHUNK_BITS];
        size_t at = from & (COUNTS_CHUNK_CLUSTERS - 1);
        if (chunk->bits == 0) {
            from += COUNTS_CHUNK_CLUSTERS - at;
        } else if (chunk->bits == 1) {
            uint64_t rest = words(chunk)[at / 64] >> at % 64;
            if (rest != 0)
                return from + (uint64_t)__builtin_ctzll(rest);
            from += 64 - at % 64;
        } else {
            if (chunk_get(chunk, at) != 0)
                return from;
            from++;
        }
    }
    return c->clusters;
}
