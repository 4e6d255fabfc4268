// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/forge.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "qcow2/format/format.h"
#include "qcow2/format/header.h"
#include "tests/sim/pattern.h"

// Most host clusters of an image that is filled up with leaks.
#define LEAKS_MAX 16384u

#define LAYERS_MAX (FORGE_SNAPSHOTS_MAX + 1)
// Value of the bytes in free clusters, which belongs to no write.
#define STALE_VALUE 0x7ffff0u

// The disk as a snapshot keeps it, or as it is now (the last layer).
struct layer {
    uint64_t *entries;   // L2 entries of all guest clusters, without COPIED
    uint64_t *tables;    // host clusters of the L2 tables, 0: none
    uint64_t l1_cluster; // first host cluster of the L1 table
};

struct forge {
    const struct forge_recipe *recipe;
    struct rng *rng;
    struct memory *memory;
    uint64_t cluster_size;
    uint64_t guest_clusters;
    uint64_t l1_size;
    uint64_t l2_entries;
    struct layer layers[LAYERS_MAX];
    unsigned layer_count;
    uint64_t next;       // first unused host cluster
    uint64_t first_leak; // [first_leak, end_leak) count as used
    uint64_t end_leak;
    // Offset at which the last compressed cluster ended; 0: begin a new host cluster.
    uint64_t packed_end;
    uint64_t bitmap_clusters;                  // of all that bitmaps have
    uint64_t bitmap_directory;                 // first cluster
    uint64_t bitmap_tables[FORGE_BITMAPS_MAX]; // a cluster each
    uint64_t bitmap_entries[FORGE_BITMAPS_MAX][FORGE_BITMAP_ENTRIES];
    unsigned bitmap_sizes[FORGE_BITMAPS_MAX]; // entries of each
    uint64_t snapshot_cluster;
    uint64_t snapshot_bytes;
    uint64_t table_cluster; // of the refcount table
    uint64_t table_clusters;
    uint64_t block_cluster; // first refcount block; all are contiguous
    uint64_t blocks;
    uint64_t *references;  // of each host cluster
    unsigned char *buffer; // one cluster
};

static void *need(void *p)
{
    if (!p)
        abort();
    return p;
}

static uint64_t divide_up(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

static void put(struct forge *f, const void *bytes, uint64_t offset, size_t length)
{
    if (f->memory->size < offset + length)
        memory_resize(f->memory, offset + length);
    memory_write(f->memory, bytes, offset, length);
}

static void put64(struct forge *f, uint64_t offset, uint64_t value)
{
    unsigned char bytes[8];

    format_put64(bytes, value);
    put(f, bytes, offset, sizeof(bytes));
}

static uint64_t take(struct forge *f, uint64_t count)
{
    uint64_t first = f->next;

    f->next += count;
    return first;
}

// ---- Data

static void leave_gap(struct forge *f)
{
    if (!f->recipe->gaps || !rng_percent(f->rng, 15))
        return;
    uint64_t cluster = take(f, rng_between(f->rng, 1, 3));

    for (; cluster < f->next; cluster++) {
        pattern_fill(f->buffer, STALE_VALUE, cluster * f->cluster_size, f->cluster_size);
        put(f, f->buffer, cluster * f->cluster_size, f->cluster_size);
    }
}

static uint64_t put_data(struct forge *f, uint64_t guest, uint32_t value)
{
    leave_gap(f);
    uint64_t host = take(f, 1) * f->cluster_size;

    pattern_fill(f->buffer, value, guest * f->cluster_size, f->cluster_size);
    put(f, f->buffer, host, f->cluster_size);
    return host;
}

// Compresses the cluster in buffer. Returns its compressed size; packed has room for two clusters.
static uint64_t pack(struct forge *f, unsigned char *packed)
{
    z_stream stream = {.next_in = f->buffer,
                       .avail_in = (uInt)f->cluster_size,
                       .next_out = packed,
                       .avail_out = (uInt)(2 * f->cluster_size)};

    if (f->recipe->zstd) {
        size_t length = ZSTD_compress(packed, 2 * f->cluster_size, f->buffer, f->cluster_size, 1);

        if (ZSTD_isError(length))
            abort();
        return length;
    }
    if (deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, -12, 8, Z_DEFAULT_STRATEGY) != Z_OK ||
        deflate(&stream, Z_FINISH) != Z_STREAM_END)
        abort();
    deflateEnd(&stream);
    return 2 * f->cluster_size - stream.avail_out;
}

static uint64_t put_compressed(struct forge *f, uint64_t guest, uint32_t value)
{
    unsigned shift = format_compressed_shift(f->recipe->cluster_bits);
    unsigned char *packed = need(malloc(2 * f->cluster_size));

    value |= PATTERN_COMPRESSIBLE;
    pattern_fill(f->buffer, value, guest * f->cluster_size, f->cluster_size);
    uint64_t length = pack(f, packed);
    assert(length < f->cluster_size);

    // Narrow refcounts cannot count several compressed clusters in one host cluster. Some begin so
    // late in their host cluster that they end in the next one.
    uint64_t used = f->packed_end % f->cluster_size;
    if (used == 0 || f->recipe->refcount_order < FORMAT_REFCOUNT_ORDER_V2 ||
        f->packed_end / f->cluster_size + 1 != f->next || rng_percent(f->rng, 20)) {
        used = rng_percent(f->rng, 30) ? f->cluster_size - 1 - rng_below(f->rng, length) : 0;
        f->packed_end = take(f, divide_up(used + length, f->cluster_size)) * f->cluster_size + used;
    } else if (used + length > f->cluster_size) {
        take(f, divide_up(used + length, f->cluster_size) - 1);
    }
    uint64_t offset = f->packed_end;
    put(f, packed, offset, length);
    f->packed_end += length;
    free(packed);
    uint64_t sectors = (offset + length - 1) / 512 - offset / 512;
    return FORMAT_COMPRESSED | sectors << shift | offset;
}

static uint64_t new_entry(struct forge *f, uint64_t guest, uint32_t value)
{
    unsigned kind = (unsigned)rng_below(f->rng, 10);

    if (kind == 0 && f->recipe->version >= 3)
        return FORMAT_L2_ZERO;
    if (kind == 1 && f->recipe->version >= 3)
        return put_data(f, guest, value) | FORMAT_L2_ZERO;
    if (kind <= 4 && f->recipe->compressed)
        return put_compressed(f, guest, value);
    return put_data(f, guest, value);
}

static void make_layer(struct forge *f, unsigned number)
{
    struct layer *layer = &f->layers[number];

    layer->entries = need(calloc(f->guest_clusters + 1, sizeof(*layer->entries)));
    layer->tables = need(calloc(f->l1_size + 1, sizeof(*layer->tables)));
    if (number > 0)
        memcpy(layer->entries, f->layers[number - 1].entries,
               f->guest_clusters * sizeof(*layer->entries));
    uint64_t seed = rng_next(f->rng);
    for (unsigned z = 0; z < f->recipe->zone_count; z++) {
        const struct forge_zone *zone = &f->recipe->zones[z];
        uint64_t end = divide_up(zone->offset + zone->length, f->cluster_size);

        for (uint64_t g = zone->offset / f->cluster_size; g < end; g++) {
            unsigned percent = number == 0 ? f->recipe->fill : f->recipe->fill / 3;

            // Half of the tables stay as the snapshot has them, so that they can be shared with it.
            if (number > 0 && rng_mix(seed ^ g / f->l2_entries) % 2)
                continue;
            if (rng_percent(f->rng, percent))
                layer->entries[g] = new_entry(f, g, f->recipe->value + number);
        }
    }
}

// ---- Where tables lie

static bool same_table(const struct forge *f, unsigned number, uint64_t i)
{
    uint64_t first = i * f->l2_entries;
    uint64_t count =
        f->guest_clusters - first < f->l2_entries ? f->guest_clusters - first : f->l2_entries;

    return number > 0 && f->layers[number - 1].tables[i] != 0 &&
           memcmp(f->layers[number].entries + first, f->layers[number - 1].entries + first,
                  count * sizeof(uint64_t)) == 0;
}

static bool empty_table(const struct forge *f, const struct layer *layer, uint64_t i)
{
    for (uint64_t k = i * f->l2_entries; k < (i + 1) * f->l2_entries && k < f->guest_clusters;
         k++) {
        if (layer->entries[k] != 0)
            return false;
    }
    return true;
}

static void place_tables(struct forge *f, unsigned number)
{
    struct layer *layer = &f->layers[number];

    for (uint64_t i = 0; i < f->l1_size; i++) {
        if (same_table(f, number, i) && rng_percent(f->rng, 80))
            layer->tables[i] = f->layers[number - 1].tables[i];
        else if (!empty_table(f, layer, i) || rng_percent(f->rng, 10))
            layer->tables[i] = take(f, 1);
    }
    layer->l1_cluster = take(f, divide_up(f->l1_size * 8, f->cluster_size));
}

// Each bitmap has clusters of bits, and parts that are all zeros or all ones without a cluster.
static void place_bitmaps(struct forge *f)
{
    if (f->recipe->bitmaps == 0)
        return;
    f->bitmap_directory = take(f, 1);
    for (unsigned i = 0; i < f->recipe->bitmaps; i++) {
        leave_gap(f);
        f->bitmap_tables[i] = take(f, 1);
        // One entry is enough for a disk here; nobody reads a bitmap that is in use.
        f->bitmap_sizes[i] = rng_percent(f->rng, 50) ? 1 : FORGE_BITMAP_ENTRIES;
        for (unsigned k = 0; k < f->bitmap_sizes[i]; k++) {
            f->bitmap_entries[i][k] = rng_below(f->rng, 2);
            if (rng_percent(f->rng, 50))
                f->bitmap_entries[i][k] = take(f, 1) * f->cluster_size;
        }
    }
}

// Counts unused clusters as used, until the refcount table has no room for more and has to grow
// soon.
static void place_leaks(struct forge *f, uint64_t per_block)
{
    uint64_t covered = per_block * (f->cluster_size / 8);
    uint64_t tables = 1 + f->cluster_size / 8;

    if (!f->recipe->leaks || covered > LEAKS_MAX || f->next + tables >= covered)
        return;
    f->first_leak = f->next;
    take(f, covered - tables - f->next);
    f->end_leak = f->next;
}

static void place_refcounts(struct forge *f)
{
    uint64_t per_block = f->cluster_size * 8 >> f->recipe->refcount_order;

    place_leaks(f, per_block);

    f->table_clusters = 1;
    f->blocks = 1;
    while (divide_up(f->next + f->table_clusters + f->blocks, per_block) > f->blocks) {
        f->blocks++;
        f->table_clusters = divide_up(f->blocks * 8, f->cluster_size);
    }
    f->table_cluster = take(f, f->table_clusters);
    f->block_cluster = take(f, f->blocks);
}

// ---- References and flags

static void refer(struct forge *f, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        f->references[first + i]++;
}

static void refer_entry(struct forge *f, uint64_t entry)
{
    unsigned bits = f->recipe->cluster_bits;

    if (entry & FORMAT_COMPRESSED) {
        uint64_t offset = format_compressed_offset(entry, bits);
        uint64_t last = offset + format_compressed_length(entry, bits) - 1;

        refer(f, offset >> bits, (last >> bits) - (offset >> bits) + 1);
    } else if (entry & FORMAT_L2_OFFSET_MASK) {
        refer(f, (entry & FORMAT_L2_OFFSET_MASK) >> bits, 1);
    }
}

static uint64_t refer_bitmaps(struct forge *f)
{
    uint64_t clusters = 0;

    if (f->recipe->bitmaps == 0)
        return 0;
    refer(f, f->bitmap_directory, 1);
    clusters++;
    for (unsigned i = 0; i < f->recipe->bitmaps; i++) {
        refer(f, f->bitmap_tables[i], 1);
        clusters++;
        for (unsigned k = 0; k < f->bitmap_sizes[i]; k++) {
            uint64_t cluster = f->bitmap_entries[i][k] / f->cluster_size;

            if (cluster > 0)
                refer(f, cluster, 1);
            clusters += cluster > 0;
        }
    }
    return clusters;
}

static void count_references(struct forge *f)
{
    f->references = need(calloc(f->next, sizeof(*f->references)));
    refer(f, 0, 1);
    refer(f, f->first_leak, f->end_leak - f->first_leak);
    refer(f, f->table_cluster, f->table_clusters);
    refer(f, f->block_cluster, f->blocks);
    refer(f, f->snapshot_cluster, divide_up(f->snapshot_bytes, f->cluster_size));
    f->bitmap_clusters = refer_bitmaps(f);
    for (unsigned n = 0; n < f->layer_count; n++) {
        const struct layer *layer = &f->layers[n];

        refer(f, layer->l1_cluster, divide_up(f->l1_size * 8, f->cluster_size));
        for (uint64_t i = 0; i < f->l1_size; i++) {
            if (layer->tables[i] == 0)
                continue;
            refer(f, layer->tables[i], 1);
            for (uint64_t k = i * f->l2_entries;
                 k < (i + 1) * f->l2_entries && k < f->guest_clusters; k++)
                refer_entry(f, layer->entries[k]);
        }
    }
}

static uint64_t flagged(const struct forge *f, uint64_t entry)
{
    uint64_t offset = entry & FORMAT_L2_OFFSET_MASK;

    if (entry & FORMAT_COMPRESSED || offset == 0)
        return entry;
    return f->references[offset >> f->recipe->cluster_bits] == 1 ? entry | FORMAT_COPIED : entry;
}

// ---- Writing tables

static void write_layer(struct forge *f, const struct layer *layer)
{
    uint64_t l1 = layer->l1_cluster * f->cluster_size;

    for (uint64_t i = 0; i < f->l1_size; i++) {
        uint64_t table = layer->tables[i] * f->cluster_size;

        put64(f, l1 + i * 8, flagged(f, table));
        if (table == 0)
            continue;
        memset(f->buffer, 0, f->cluster_size);
        for (uint64_t k = 0; k < f->l2_entries && i * f->l2_entries + k < f->guest_clusters; k++)
            format_put64(f->buffer + k * 8, flagged(f, layer->entries[i * f->l2_entries + k]));
        put(f, f->buffer, table, f->cluster_size);
    }
}

static void write_refcounts(struct forge *f)
{
    unsigned width = 1u << f->recipe->refcount_order;
    uint64_t base = f->block_cluster * f->cluster_size;
    unsigned char *blocks = need(calloc(f->blocks, f->cluster_size));

    for (uint64_t i = 0; i < f->next; i++) {
        uint64_t count = f->references[i];

        assert(width == 64 || count >> width == 0);
        if (width < 8) {
            blocks[i * width / 8] |= (unsigned char)(count << (i * width % 8));
            continue;
        }
        for (unsigned b = width / 8; b-- > 0; count >>= 8)
            blocks[i * (width / 8) + b] = (unsigned char)count;
    }
    put(f, blocks, base, f->blocks * f->cluster_size);
    free(blocks);
    memset(f->buffer, 0, f->cluster_size);
    for (uint64_t i = 0; i < f->table_clusters; i++)
        put(f, f->buffer, (f->table_cluster + i) * f->cluster_size, f->cluster_size);
    for (uint64_t i = 0; i < f->blocks; i++)
        put64(f, f->table_cluster * f->cluster_size + i * 8, base + i * f->cluster_size);
}

// Each entry has 16 bytes of extra data, an id and a name of one byte, and is padded.
#define SNAPSHOT_BYTES ((FORMAT_SNAPSHOT_BYTES + 16 + 2 + 7) / 8 * 8)

static void write_snapshots(struct forge *f)
{
    for (unsigned n = 0; n + 1 < f->layer_count; n++) {
        unsigned char entry[SNAPSHOT_BYTES] = {0};

        format_put64(entry + FORMAT_SNAPSHOT_L1_OFFSET, f->layers[n].l1_cluster * f->cluster_size);
        format_put32(entry + FORMAT_SNAPSHOT_L1_SIZE, (uint32_t)f->l1_size);
        format_put16(entry + FORMAT_SNAPSHOT_ID_LENGTH, 1);
        format_put16(entry + FORMAT_SNAPSHOT_NAME_LENGTH, 1);
        format_put32(entry + FORMAT_SNAPSHOT_EXTRA_LENGTH, 16);
        format_put64(entry + FORMAT_SNAPSHOT_BYTES + FORMAT_SNAPSHOT_EXTRA_DISK_SIZE,
                     f->recipe->size);
        entry[FORMAT_SNAPSHOT_BYTES + 16] = (unsigned char)('1' + n);
        entry[FORMAT_SNAPSHOT_BYTES + 17] = (unsigned char)('a' + n);
        put(f, entry, f->snapshot_cluster * f->cluster_size + n * SNAPSHOT_BYTES, SNAPSHOT_BYTES);
    }
}

// Each entry has a name of one byte and is padded.
#define BITMAP_BYTES ((FORMAT_BITMAP_ENTRY_BYTES + 1 + 7) / 8 * 8)
// Bits for 64 KiB each: one cluster of bits is enough for any disk here.
#define BITMAP_GRANULARITY 16

static void write_bitmaps(struct forge *f)
{
    for (unsigned i = 0; i < f->recipe->bitmaps; i++) {
        unsigned char entry[BITMAP_BYTES] = {0};
        uint64_t table = f->bitmap_tables[i] * f->cluster_size;

        format_put64(entry + FORMAT_BITMAP_TABLE_OFFSET, table);
        format_put32(entry + FORMAT_BITMAP_TABLE_SIZE, f->bitmap_sizes[i]);
        // Flags: in use, or to be kept up to date by writers.
        format_put32(entry + FORMAT_BITMAP_FLAGS, f->bitmap_sizes[i] > 1 ? 1 : 2);
        entry[FORMAT_BITMAP_GRANULARITY - 1] = 1; // the type: of dirty parts
        entry[FORMAT_BITMAP_GRANULARITY] = BITMAP_GRANULARITY;
        format_put16(entry + FORMAT_BITMAP_NAME_LENGTH, 1);
        entry[FORMAT_BITMAP_ENTRY_BYTES] = (unsigned char)('a' + i);
        put(f, entry, f->bitmap_directory * f->cluster_size + i * BITMAP_BYTES, BITMAP_BYTES);
        for (unsigned k = 0; k < f->bitmap_sizes[i]; k++)
            put64(f, table + k * 8, f->bitmap_entries[i][k]);
    }
}

// Returns the place of the next extension.
static size_t put_bitmaps_extension(const struct forge *f, size_t at)
{
    unsigned char *h = f->buffer;

    format_put32(h + at, FORMAT_EXTENSION_BITMAPS);
    format_put32(h + at + 4, FORMAT_BITMAPS_EXTENSION_BYTES);
    at += FORMAT_EXTENSION_BYTES;
    format_put32(h + at + FORMAT_BITMAPS_COUNT, f->recipe->bitmaps);
    format_put64(h + at + FORMAT_BITMAPS_DIRECTORY_SIZE, f->recipe->bitmaps * BITMAP_BYTES);
    format_put64(h + at + FORMAT_BITMAPS_DIRECTORY_OFFSET, f->bitmap_directory * f->cluster_size);
    at += FORMAT_BITMAPS_EXTENSION_BYTES;
    format_put64(h + FORMAT_HEADER_AUTOCLEAR,
                 f->recipe->stale_bitmaps ? 0 : FORMAT_AUTOCLEAR_BITMAPS);
    if (f->recipe->later_extension) {
        // An unknown type, without data.
        format_put32(h + at, 0x6c617a79);
        at += FORMAT_EXTENSION_BYTES;
    }
    return at;
}

static void write_header(struct forge *f)
{
    const struct forge_recipe *r = f->recipe;
    unsigned char *h = f->buffer;
    bool zstd = r->zstd && r->compressed;
    // The compression type is a field behind the shortest header of version 3.
    uint32_t length = FORMAT_HEADER_V3_BYTES_MIN + (zstd ? 8 : 0);
    size_t at = r->version >= 3 ? length : FORMAT_HEADER_V2_BYTES;

    memset(h, 0, f->cluster_size);
    format_put32(h + FORMAT_HEADER_MAGIC, FORMAT_MAGIC);
    format_put32(h + FORMAT_HEADER_VERSION, r->version);
    format_put32(h + FORMAT_HEADER_CLUSTER_BITS, r->cluster_bits);
    format_put64(h + FORMAT_HEADER_SIZE, r->size);
    format_put32(h + FORMAT_HEADER_L1_SIZE, (uint32_t)f->l1_size);
    format_put64(h + FORMAT_HEADER_L1_OFFSET,
                 f->layers[f->layer_count - 1].l1_cluster * f->cluster_size);
    format_put64(h + FORMAT_HEADER_REFCOUNT_TABLE_OFFSET, f->table_cluster * f->cluster_size);
    format_put32(h + FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS, (uint32_t)f->table_clusters);
    format_put32(h + FORMAT_HEADER_SNAPSHOT_COUNT, f->layer_count - 1);
    if (f->layer_count > 1)
        format_put64(h + FORMAT_HEADER_SNAPSHOT_OFFSET, f->snapshot_cluster * f->cluster_size);
    if (r->version >= 3) {
        format_put64(h + FORMAT_HEADER_COMPATIBLE, r->lazy_refcounts ? 1 : 0);
        format_put32(h + FORMAT_HEADER_REFCOUNT_ORDER, r->refcount_order);
        format_put32(h + FORMAT_HEADER_LENGTH, length);
        if (zstd)
            format_put64(h + FORMAT_HEADER_INCOMPATIBLE, HEADER_INCOMPATIBLE_COMPRESSION);
        h[FORMAT_HEADER_V3_BYTES_MIN] = zstd;
    }
    if (r->bitmaps > 0)
        at = put_bitmaps_extension(f, at);
    if (r->backing_name) {
        size_t bytes = strlen(r->backing_format);

        format_put32(h + at, FORMAT_EXTENSION_BACKING_FORMAT);
        format_put32(h + at + 4, (uint32_t)bytes);
        memcpy(h + at + 8, r->backing_format, bytes);
        at += 8 + (bytes + 7) / 8 * 8;
        at += FORMAT_EXTENSION_BYTES; // the end of the extensions
        memcpy(h + at, r->backing_name, strlen(r->backing_name));
        format_put64(h + FORMAT_HEADER_BACKING_OFFSET, at);
        format_put32(h + FORMAT_HEADER_BACKING_LENGTH, (uint32_t)strlen(r->backing_name));
    }
    put(f, h, 0, f->cluster_size);
}

uint64_t forge_image(const struct forge_recipe *recipe, struct rng *rng, struct memory *out)
{
    struct forge f = {.recipe = recipe, .rng = rng, .memory = out, .next = 1};

    memory_init(out);
    f.cluster_size = 1ull << recipe->cluster_bits;
    f.guest_clusters = divide_up(recipe->size, f.cluster_size);
    f.l2_entries = f.cluster_size / 8;
    f.l1_size = divide_up(f.guest_clusters, f.l2_entries);
    f.layer_count = recipe->snapshots + 1;
    f.buffer = need(malloc(f.cluster_size));
    for (unsigned n = 0; n < f.layer_count; n++) {
        make_layer(&f, n);
        place_tables(&f, n);
    }
    if (recipe->snapshots > 0) {
        f.snapshot_bytes = recipe->snapshots * SNAPSHOT_BYTES;
        f.snapshot_cluster = take(&f, divide_up(f.snapshot_bytes, f.cluster_size));
    }
    place_bitmaps(&f);
    place_refcounts(&f);
    count_references(&f);
    for (unsigned n = 0; n < f.layer_count; n++)
        write_layer(&f, &f.layers[n]);
    write_snapshots(&f);
    write_bitmaps(&f);
    write_refcounts(&f);
    write_header(&f);
    if (out->size < f.next * f.cluster_size)
        memory_resize(out, f.next * f.cluster_size);
    for (unsigned n = 0; n < f.layer_count; n++) {
        free(f.layers[n].entries);
        free(f.layers[n].tables);
    }
    free(f.references);
    free(f.buffer);
    return f.end_leak - f.first_leak + (recipe->stale_bitmaps ? f.bitmap_clusters : 0);
}

// Bytes of a device that are not zeros at first: those that are taken first.
#define STALE_BYTES (4u << 20)

void forge_device(uint64_t room, struct memory *out)
{
    unsigned char buffer[MEMORY_PAGE_BYTES];
    uint64_t at = out->size;

    memory_resize(out, out->size + room);
    for (uint64_t end = at + STALE_BYTES; at < end && at < out->size; at += sizeof(buffer)) {
        pattern_fill(buffer, STALE_VALUE, at, sizeof(buffer));
        memory_write(out, buffer, at, sizeof(buffer));
    }
}

void forge_raw(uint64_t size, uint32_t value, struct memory *out)
{
    unsigned char buffer[MEMORY_PAGE_BYTES];

    memory_init(out);
    memory_resize(out, size);
    for (uint64_t at = 0; at < size; at += sizeof(buffer)) {
        pattern_fill(buffer, value, at, sizeof(buffer));
        memory_write(out, buffer, at, sizeof(buffer));
    }
}
