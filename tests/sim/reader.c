// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/reader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "qcow2/format/format.h"
#include "qcow2/format/header.h"

static uint32_t read32(const struct reader *reader, uint64_t offset)
{
    unsigned char bytes[4];

    memory_read(reader->memory, bytes, offset, sizeof(bytes));
    return format_get32(bytes);
}

static uint16_t read16(const struct reader *reader, uint64_t offset)
{
    unsigned char bytes[2];

    memory_read(reader->memory, bytes, offset, sizeof(bytes));
    return format_get16(bytes);
}

uint64_t reader_read64(const struct reader *reader, uint64_t offset)
{
    unsigned char bytes[8];

    memory_read(reader->memory, bytes, offset, sizeof(bytes));
    return format_get64(bytes);
}

static void read_snapshots(struct reader *r)
{
    uint64_t at = r->snapshot_table_offset;

    for (uint32_t i = 0; i < r->snapshot_count; i++) {
        r->snapshots[i] = (struct reader_l1){
            .offset = reader_read64(r, at + FORMAT_SNAPSHOT_L1_OFFSET),
            .size = read32(r, at + FORMAT_SNAPSHOT_L1_SIZE),
        };
        at += FORMAT_SNAPSHOT_BYTES + read32(r, at + FORMAT_SNAPSHOT_EXTRA_LENGTH) +
              read16(r, at + FORMAT_SNAPSHOT_ID_LENGTH) +
              read16(r, at + FORMAT_SNAPSHOT_NAME_LENGTH);
        at = (at + 7) & ~7ull;
    }
    r->snapshot_table_bytes = at - r->snapshot_table_offset;
}

static void find_bitmaps(struct reader *r)
{
    uint64_t at = read32(r, FORMAT_HEADER_LENGTH);

    if (!(reader_read64(r, FORMAT_HEADER_AUTOCLEAR) & FORMAT_AUTOCLEAR_BITMAPS))
        return;
    while (at + FORMAT_EXTENSION_BYTES < r->cluster_size) {
        uint32_t type = read32(r, at);
        uint32_t length = read32(r, at + 4);

        if (type == FORMAT_EXTENSION_END)
            return;
        at += FORMAT_EXTENSION_BYTES;
        if (type == FORMAT_EXTENSION_BITMAPS) {
            r->bitmap_count = read32(r, at + FORMAT_BITMAPS_COUNT);
            r->bitmap_bytes = reader_read64(r, at + FORMAT_BITMAPS_DIRECTORY_SIZE);
            r->bitmap_directory = reader_read64(r, at + FORMAT_BITMAPS_DIRECTORY_OFFSET);
        }
        at += (length + 7) & ~7u;
    }
}

bool reader_open(struct reader *r, const struct memory *memory, struct reader_backing backing,
                 char *text)
{
    *r = (struct reader){.memory = memory, .backing = backing};
    r->version = read32(r, FORMAT_HEADER_VERSION);
    r->cluster_bits = read32(r, FORMAT_HEADER_CLUSTER_BITS);
    if (read32(r, FORMAT_HEADER_MAGIC) != FORMAT_MAGIC || r->version < 2 || r->version > 3 ||
        r->cluster_bits < 9 || r->cluster_bits > 21) {
        snprintf(text, READER_TEXT, "the header is broken");
        return false;
    }
    r->cluster_size = 1ull << r->cluster_bits;
    r->size = reader_read64(r, FORMAT_HEADER_SIZE);
    r->active = (struct reader_l1){.offset = reader_read64(r, FORMAT_HEADER_L1_OFFSET),
                                   .size = read32(r, FORMAT_HEADER_L1_SIZE)};
    r->refcount_table_offset = reader_read64(r, FORMAT_HEADER_REFCOUNT_TABLE_OFFSET);
    r->refcount_table_clusters = read32(r, FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS);
    r->snapshot_count = read32(r, FORMAT_HEADER_SNAPSHOT_COUNT);
    r->snapshot_table_offset = reader_read64(r, FORMAT_HEADER_SNAPSHOT_OFFSET);
    r->refcount_order = FORMAT_REFCOUNT_ORDER_V2;
    if (r->version >= 3) {
        r->incompatible = reader_read64(r, FORMAT_HEADER_INCOMPATIBLE);
        r->refcount_order = read32(r, FORMAT_HEADER_REFCOUNT_ORDER);
        r->zstd = (r->incompatible & HEADER_INCOMPATIBLE_COMPRESSION) != 0;
        find_bitmaps(r);
    }
    if (r->snapshot_count > READER_SNAPSHOTS_MAX || r->refcount_order > 6) {
        snprintf(text, READER_TEXT, "the header is broken");
        return false;
    }
    read_snapshots(r);
    return true;
}

uint64_t reader_entry(const struct reader *r, const struct reader_l1 *l1, uint64_t cluster)
{
    unsigned l2_bits = r->cluster_bits - 3;
    uint64_t index = cluster >> l2_bits;

    if (index >= l1->size)
        return 0;
    uint64_t table = reader_read64(r, l1->offset + index * 8) & FORMAT_L1_OFFSET_MASK;
    if (table == 0)
        return 0;
    return reader_read64(r, table + (cluster & ((1ull << l2_bits) - 1)) * 8);
}

static void read_backing(const struct reader *r, uint64_t guest, unsigned char *buf)
{
    if (r->backing.raw)
        memory_read(r->backing.raw, buf, guest, r->cluster_size);
    else if (r->backing.image)
        reader_bytes(r->backing.image, buf, guest, r->cluster_size);
    else
        memset(buf, 0, r->cluster_size);
}

// Each returns true when a whole cluster came out.
static bool inflate_zlib(const unsigned char *packed, uint64_t length, unsigned char *buf,
                         uint64_t cluster_size)
{
    z_stream stream = {.next_in = (unsigned char *)(uintptr_t)packed,
                       .avail_in = (uInt)length,
                       .next_out = buf,
                       .avail_out = (uInt)cluster_size};

    if (inflateInit2(&stream, -12) != Z_OK)
        abort();
    inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    return stream.avail_out == 0;
}

static bool inflate_zstd(const unsigned char *packed, uint64_t length, unsigned char *buf,
                         uint64_t cluster_size)
{
    ZSTD_DStream *stream = ZSTD_createDStream();
    ZSTD_inBuffer in = {packed, length, 0};
    ZSTD_outBuffer out = {buf, cluster_size, 0};
    size_t left = 1;

    if (!stream)
        abort();
    // Any bytes may follow the frame.
    while (left > 0 && !ZSTD_isError(left) && in.pos < in.size && out.pos < out.size)
        left = ZSTD_decompressStream(stream, &out, &in);
    ZSTD_freeDStream(stream);
    return out.pos == out.size;
}

static void read_compressed(const struct reader *r, uint64_t entry, unsigned char *buf)
{
    uint64_t offset = format_compressed_offset(entry, r->cluster_bits);
    uint64_t length = format_compressed_length(entry, r->cluster_bits);
    unsigned char *packed = malloc(length);

    if (!packed)
        abort();
    memory_read(r->memory, packed, offset, length);
    // A cluster that cannot be inflated gets content that no one expects.
    if (!(r->zstd ? inflate_zstd : inflate_zlib)(packed, length, buf, r->cluster_size))
        memset(buf, 0xee, r->cluster_size);
    free(packed);
}

void reader_cluster(const struct reader *r, const struct reader_l1 *l1, uint64_t cluster,
                    unsigned char *buf)
{
    uint64_t entry = reader_entry(r, l1, cluster);

    if (entry & FORMAT_COMPRESSED)
        read_compressed(r, entry, buf);
    else if (r->version >= 3 && (entry & FORMAT_L2_ZERO))
        memset(buf, 0, r->cluster_size);
    else if (entry & FORMAT_L2_OFFSET_MASK)
        memory_read(r->memory, buf, entry & FORMAT_L2_OFFSET_MASK, r->cluster_size);
    else
        read_backing(r, cluster << r->cluster_bits, buf);
}

void reader_bytes(const struct reader *r, void *buf, uint64_t guest, uint64_t length)
{
    unsigned char *to = buf;
    unsigned char *cluster = malloc(r->cluster_size);

    if (!cluster)
        abort();
    memset(to, 0, length);
    if (guest + length > r->size)
        length = guest < r->size ? r->size - guest : 0;
    while (length > 0) {
        uint64_t at = guest & (r->cluster_size - 1);
        uint64_t n = r->cluster_size - at < length ? r->cluster_size - at : length;

        reader_cluster(r, &r->active, guest >> r->cluster_bits, cluster);
        memcpy(to, cluster + at, n);
        to += n;
        guest += n;
        length -= n;
    }
    free(cluster);
}

// Returns log2 of the clusters whose refcounts are in one block.
static unsigned block_bits(const struct reader *r)
{
    return r->cluster_bits + 3 - r->refcount_order;
}

uint64_t reader_refcount_block(const struct reader *r, uint64_t host_cluster)
{
    uint64_t index = host_cluster >> block_bits(r);

    if (index >= (uint64_t)r->refcount_table_clusters << (r->cluster_bits - 3))
        return 0;
    return reader_read64(r, r->refcount_table_offset + index * 8) &
           FORMAT_REFCOUNT_TABLE_OFFSET_MASK;
}

uint64_t reader_refcount_in(const struct reader *r, uint64_t block, uint64_t host_cluster)
{
    uint64_t index = host_cluster & ((1ull << block_bits(r)) - 1);
    unsigned width = 1u << r->refcount_order;
    unsigned char bytes[8];
    uint64_t count = 0;

    if (width < 8) {
        memory_read(r->memory, bytes, block + index * width / 8, 1);
        return bytes[0] >> (index * width % 8) & ((1u << width) - 1);
    }
    memory_read(r->memory, bytes, block + index * (width / 8), width / 8);
    for (unsigned i = 0; i < width / 8; i++)
        count = count << 8 | bytes[i];
    return count;
}

uint64_t reader_refcount(const struct reader *r, uint64_t host_cluster)
{
    uint64_t block = reader_refcount_block(r, host_cluster);

    return block == 0 ? 0 : reader_refcount_in(r, block, host_cluster);
}
