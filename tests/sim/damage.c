// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/damage.h"

#include "qcow2/format/format.h"
#include "qcow2/format/header.h"

struct damage {
    struct memory *memory;
    const struct reader *reader;
    struct rng *rng;
    bool table_spoiled; // its entries may point anywhere
};

static void put64(struct damage *d, uint64_t offset, uint64_t value)
{
    unsigned char bytes[8];

    format_put64(bytes, value);
    memory_write(d->memory, bytes, offset, sizeof(bytes));
}

static uint64_t table_entries(const struct damage *d)
{
    return ((uint64_t)d->reader->refcount_table_clusters << d->reader->cluster_bits) / 8;
}

static uint64_t block_at(const struct damage *d, uint64_t index)
{
    return reader_read64(d->reader, d->reader->refcount_table_offset + index * 8) &
           FORMAT_REFCOUNT_TABLE_OFFSET_MASK;
}

// Draws a refcount block, mostly one at the front of the table.
static uint64_t draw_block(const struct damage *d, uint64_t *index)
{
    uint64_t used = 0;

    while (used < table_entries(d) && block_at(d, used) != 0)
        used++;
    *index = used > 0 ? rng_below(d->rng, used) : 0;
    return used > 0 ? block_at(d, *index) : 0;
}

// Damages some bytes of a block, or all of them.
static void spoil_block(struct damage *d)
{
    uint64_t index;
    uint64_t block = draw_block(d, &index);
    uint64_t bytes = d->reader->cluster_size;
    uint64_t count = rng_percent(d->rng, 10) ? bytes : rng_scaled(d->rng, 16);
    // The refcounts of most clusters in use are at the front.
    uint64_t end = rng_percent(d->rng, 70) && bytes > 64 ? 64 : bytes;

    if (d->table_spoiled || block == 0 || block + bytes > d->memory->size)
        return;
    for (uint64_t i = 0; i < count; i++) {
        unsigned char byte = rng_percent(d->rng, 30) ? 0 : (unsigned char)rng_next(d->rng);

        memory_write(d->memory, &byte, block + rng_below(d->rng, end), 1);
    }
}

// Damages an entry of the refcount table: removes it, or points it anywhere.
static void spoil_table(struct damage *d)
{
    uint64_t clusters = d->memory->size >> d->reader->cluster_bits;
    uint64_t index;

    if (draw_block(d, &index) == 0)
        return;
    uint64_t entry = 0;
    if (rng_percent(d->rng, 60))
        entry = rng_below(d->rng, clusters + 4) << d->reader->cluster_bits;
    if (rng_percent(d->rng, 20))
        entry |= 1ull << rng_below(d->rng, d->reader->cluster_bits);
    put64(d, d->reader->refcount_table_offset + index * 8, entry);
    d->table_spoiled = true;
}

static void flip_flag(struct damage *d)
{
    const struct reader *r = d->reader;

    if (r->active.size == 0)
        return;
    uint64_t at = r->active.offset + rng_below(d->rng, r->active.size) * 8;
    uint64_t entry = reader_read64(r, at);
    uint64_t table = entry & FORMAT_L1_OFFSET_MASK;
    if (table == 0 || table + r->cluster_size > d->memory->size)
        return;
    if (rng_percent(d->rng, 80)) {
        at = table + rng_below(d->rng, r->cluster_size / 8) * 8;
        entry = reader_read64(r, at);
        if (!(entry & (FORMAT_COMPRESSED | FORMAT_L2_OFFSET_MASK)))
            return;
    }
    put64(d, at, entry ^ FORMAT_COPIED);
}

static void flip_bits(struct damage *d)
{
    uint64_t bits =
        rng_percent(d->rng, 50) ? HEADER_INCOMPATIBLE_DIRTY : HEADER_INCOMPATIBLE_CORRUPT;

    if (d->reader->version >= 3)
        put64(d, HEADER_OFFSET_INCOMPATIBLE, d->reader->incompatible | bits);
}

void damage_refcounts(struct memory *memory, const struct reader *reader, struct rng *rng)
{
    struct damage d = {.memory = memory, .reader = reader, .rng = rng};

    for (uint64_t i = rng_scaled(rng, 4); i > 0; i--) {
        switch (rng_below(rng, 8)) {
        case 0:
        case 1:
        case 2:
            spoil_block(&d);
            break;
        case 3:
            spoil_table(&d);
            break;
        case 4:
            flip_bits(&d);
            break;
        default:
            for (uint64_t k = rng_scaled(rng, 32); k > 0; k--)
                flip_flag(&d);
            break;
        }
    }
}
