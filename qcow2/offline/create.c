// SPDX-License-Identifier: Apache-2.0
#include "qcow2/offline/create.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/format/format.h"
#include "qcow2/format/header.h"
#include "qcow2/format/refcount_array.h"

// Tables are written in steps of this many bytes: few calls, little memory.
#define WRITE_STEP (1u << 20)

// Bytes that a disk writes whole or not at all.
#define SECTOR_BYTES 512u

// Bytes of one reservation or zeroing, so that progress can be shown.
#define SPACE_STEP (64ull << 20)

// The place of everything, in clusters from the start of the file. Tables come first, data last and
// in one piece:
//   header · refcount table · refcount blocks · L1 table · L2 tables · data
struct layout {
    uint64_t table_clusters; // of the refcount table
    uint64_t blocks;         // refcount blocks
    uint64_t l1_entries;
    uint64_t l1_clusters;
    uint64_t l2_tables;     // 0 without preallocation
    uint64_t data_clusters; // 0 without preallocation
    uint64_t total_clusters;
};

static uint64_t divide_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

static struct layout layout_of(const struct create_options *o)
{
    const struct header shape = {.cluster_bits = o->cluster_bits};
    uint64_t cluster_size = 1ull << o->cluster_bits;
    uint64_t per_block = cluster_size * 8 >> o->refcount_order;
    struct layout l = {.l1_entries = header_l1_entries(&shape, o->size)};

    l.l1_clusters = divide_up(l.l1_entries * FORMAT_ENTRY_BYTES, cluster_size);
    if (o->preallocation != CREATE_PREALLOCATE_OFF) {
        l.l2_tables = l.l1_entries;
        l.data_clusters = divide_up(o->size, cluster_size);
    }
    // Blocks and the table count themselves; each round adds the blocks that the last round lacked.
    for (;;) {
        l.total_clusters =
            1 + l.table_clusters + l.blocks + l.l1_clusters + l.l2_tables + l.data_clusters;
        uint64_t blocks = divide_up(l.total_clusters, per_block);
        uint64_t table_clusters = divide_up(blocks * FORMAT_ENTRY_BYTES, cluster_size);
        if (blocks == l.blocks && table_clusters == l.table_clusters)
            return l;
        l.blocks = blocks;
        l.table_clusters = table_clusters;
    }
}

static struct header header_of(const struct create_options *o, const struct layout *l)
{
    uint64_t l1_cluster = 1 + l->table_clusters + l->blocks;
    struct header h = {
        .version = o->version,
        .cluster_bits = o->cluster_bits,
        .size = o->size,
        .l1_size = (uint32_t)l->l1_entries,
        .l1_offset = l->l1_entries > 0 ? l1_cluster << o->cluster_bits : 0,
        .refcount_table_offset = 1ull << o->cluster_bits,
        .refcount_table_clusters = (uint32_t)l->table_clusters,
        .incompatible =
            o->compression_type != FORMAT_COMPRESSION_ZLIB ? HEADER_INCOMPATIBLE_COMPRESSION : 0,
        .compatible = o->lazy_refcounts ? HEADER_COMPATIBLE_LAZY_REFCOUNTS : 0,
        .refcount_order = o->refcount_order,
        .compression_type = o->compression_type,
    };

    // create_check has made sure that the names fit.
    if (o->backing_name != NULL)
        strncpy(h.backing_name, o->backing_name, sizeof(h.backing_name) - 1);
    if (o->backing_format != NULL)
        strncpy(h.backing_format, o->backing_format, sizeof(h.backing_format) - 1);
    return h;
}

// Encodes the header's cluster, which the caller frees. Returns NULL without memory or, with *fits
// false, when the names are too long.
static uint8_t *encode_header(const struct create_options *o, const struct layout *l, bool *fits)
{
    struct header h = header_of(o, l);
    size_t cluster_size = (size_t)1 << o->cluster_bits;
    uint8_t *cluster = calloc(1, cluster_size);

    *fits = true;
    if (cluster != NULL && header_encode(&h, cluster, cluster_size) < 0) {
        *fits = false;
        free(cluster);
        return NULL;
    }
    return cluster;
}

int create_check(const struct create_options *o, const char *name, struct error *err)
{
    const struct header shape = {.cluster_bits = o->cluster_bits};

    if (o->cluster_bits < HEADER_CLUSTER_BITS_MIN || o->cluster_bits > HEADER_CLUSTER_BITS_MAX)
        return error_set(err, EINVAL,
                         "'%s': the cluster size must be a power of two from 512 to 2M", name);
    if (o->refcount_order > FORMAT_REFCOUNT_ORDER_MAX)
        return error_set(err, EINVAL, "'%s': refcount_bits must be a power of two from 1 to 64",
                         name);
    if (o->version == 2 && o->refcount_order != FORMAT_REFCOUNT_ORDER_V2)
        return error_set(err, EINVAL, "'%s': compat=0.10 has refcounts of 16 bits; use compat=1.1",
                         name);
    if (o->version == 2 && o->lazy_refcounts)
        return error_set(err, EINVAL, "'%s': compat=0.10 has no lazy refcounts; use compat=1.1",
                         name);
    if (o->version == 2 && o->compression_type != FORMAT_COMPRESSION_ZLIB)
        return error_set(err, EINVAL, "'%s': compat=0.10 has zlib compression only; use compat=1.1",
                         name);
    if (header_l1_entries(&shape, o->size) > HEADER_L1_BYTES_MAX / FORMAT_ENTRY_BYTES)
        return error_set(err, EFBIG,
                         "'%s': %" PRIu64 " bytes are too many for clusters of %llu; "
                         "use a larger cluster_size",
                         name, o->size, 1ull << o->cluster_bits);
    if (o->backing_name != NULL && o->preallocation != CREATE_PREALLOCATE_OFF)
        return error_set(err, EINVAL,
                         "'%s': preallocated clusters would hide the backing file; "
                         "use preallocation=off",
                         name);
    if (o->backing_name != NULL && strlen(o->backing_name) > HEADER_BACKING_NAME_MAX)
        return error_set(err, EINVAL,
                         "'%s': the backing file name has more than 1023 bytes; "
                         "use a relative one",
                         name);
    if (o->backing_format != NULL &&
        strlen(o->backing_format) >= sizeof(((struct header *)NULL)->backing_format))
        return error_set(err, EINVAL, "'%s': unknown backing format '%s'", name, o->backing_format);

    struct layout l = layout_of(o);
    if (l.table_clusters > HEADER_REFCOUNT_TABLE_BYTES_MAX >> o->cluster_bits ||
        l.total_clusters > HEADER_OFFSET_LIMIT >> o->cluster_bits)
        return error_set(err, EFBIG,
                         "'%s': too many clusters to preallocate; use a larger cluster_size or "
                         "preallocation=off",
                         name);
    bool fits;
    uint8_t *cluster = encode_header(o, &l, &fits);
    free(cluster);
    if (!fits)
        return error_set(err, EINVAL,
                         "'%s': the backing file name does not fit the first cluster; "
                         "use a larger cluster_size",
                         name);
    return 0;
}

static int write_failed(const struct file *file, int result, struct error *err)
{
    return error_set(err, -result, "'%s': cannot write the image: %s; it is incomplete, remove it",
                     file->name, strerror(-result));
}

// Writes count entries at offset: first, first + step, and so on, each with flags.
static int write_entries(struct file *file, uint8_t *buf, uint64_t offset, uint64_t count,
                         uint64_t first, uint64_t step, uint64_t flags)
{
    for (uint64_t i = 0; i < count;) {
        size_t n = WRITE_STEP / FORMAT_ENTRY_BYTES;
        if (n > count - i)
            n = (size_t)(count - i);
        for (size_t k = 0; k < n; k++)
            format_put64(buf + k * FORMAT_ENTRY_BYTES, (first + (i + k) * step) | flags);
        int ret =
            file_write_blocking(file, buf, offset + i * FORMAT_ENTRY_BYTES, n * FORMAT_ENTRY_BYTES);
        if (ret < 0)
            return ret;
        i += n;
    }
    return 0;
}

// Writes refcounts of one for the first total clusters, in blocks that begin at offset.
static int create_write_refcounts(struct file *file, uint8_t *buf, uint64_t offset, uint64_t total,
                                  unsigned order)
{
    uint64_t per_step = (uint64_t)WRITE_STEP * 8 >> order;

    for (uint64_t first = 0; first < total; first += per_step) {
        uint64_t n = total - first < per_step ? total - first : per_step;
        memset(buf, 0, WRITE_STEP);
        for (uint64_t i = 0; i < n; i++)
            refcount_array_set(buf, order, i, 1);
        int ret = file_write_blocking(file, buf, offset + (first << order) / 8,
                                      (size_t)divide_up(n << order, 8));
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int create_write_tables(struct file *file, const struct create_options *o,
                               const struct layout *l, uint8_t *buf)
{
    unsigned bits = o->cluster_bits;
    uint64_t cluster_size = 1ull << bits;
    uint64_t blocks = (1 + l->table_clusters) << bits;
    uint64_t l1 = blocks + (l->blocks << bits);
    uint64_t l2 = l1 + (l->l1_clusters << bits);
    uint64_t data = l2 + (l->l2_tables << bits);

    int ret = write_entries(file, buf, cluster_size, l->blocks, blocks, cluster_size, 0);
    if (ret == 0)
        ret = create_write_refcounts(file, buf, blocks, l->total_clusters, o->refcount_order);
    if (ret == 0)
        ret = write_entries(file, buf, l1, l->l2_tables, l2, cluster_size, FORMAT_COPIED);
    if (ret == 0)
        ret = write_entries(file, buf, l2, l->data_clusters, data, cluster_size, FORMAT_COPIED);
    // The last tables may end in zero entries, and the data clusters have no bytes yet.
    if (ret == 0)
        ret = file_do_blocking(file, FILE_TRUNCATE, l->total_clusters << bits, 0);
    return ret;
}

static int zero_range(struct file *file, uint8_t *zeros, uint64_t offset, uint64_t length)
{
    while (length > 0) {
        size_t n = length < WRITE_STEP ? (size_t)length : WRITE_STEP;
        int ret = file_write_blocking(file, zeros, offset, n);
        if (ret < 0)
            return ret;
        offset += n;
        length -= n;
    }
    return 0;
}

// Reserves or zeroes the data clusters.
static int fill_data(struct file *file, const struct create_options *o, const struct layout *l,
                     uint8_t *buf)
{
    uint64_t end = l->total_clusters << o->cluster_bits;
    uint64_t begin = end - (l->data_clusters << o->cluster_bits);
    bool zeros = o->preallocation == CREATE_PREALLOCATE_ZEROS;

    if (o->preallocation != CREATE_PREALLOCATE_SPACE && !zeros)
        return 0;
    memset(buf, 0, WRITE_STEP);
    for (uint64_t pos = begin; pos < end;) {
        uint64_t n = end - pos < SPACE_STEP ? end - pos : SPACE_STEP;
        int ret = -EOPNOTSUPP;
        if (!zeros)
            ret = file_do_blocking(file, FILE_ALLOCATE, pos, n);
        if (ret == -EOPNOTSUPP) // a host that can reserve space only by writing
            ret = zero_range(file, buf, pos, n);
        if (ret < 0)
            return ret;
        pos += n;
        if (o->progress != NULL)
            o->progress(o->context, pos - begin, end - begin);
    }
    return 0;
}

// Erases a block device: it keeps its size and so its old content, which would be taken for table
// entries and data. The old header goes first, so that no part of the old image counts as one.
static int erase_device(struct file *file, const struct create_options *o, const struct layout *l,
                        uint8_t *buf)
{
    uint64_t end = l->total_clusters << o->cluster_bits;

    memset(buf, 0, WRITE_STEP);
    int ret = file_write_blocking(file, buf, 0, SECTOR_BYTES);
    if (ret == 0)
        ret = file_do_blocking(file, FILE_DATASYNC, 0, 0);
    for (uint64_t pos = 0; pos < end && ret == 0; pos += SPACE_STEP) {
        uint64_t n = end - pos < SPACE_STEP ? end - pos : SPACE_STEP;
        ret = file_do_blocking(file, FILE_ZERO, pos, n);
        if (ret == -EOPNOTSUPP)
            ret = zero_range(file, buf, pos, n);
    }
    return ret;
}

int create_image(struct file *file, const struct create_options *o, struct error *err)
{
    int ret = create_check(o, file->name, err);
    if (ret < 0)
        return ret;

    struct layout l = layout_of(o);
    bool fits;
    uint8_t *cluster = encode_header(o, &l, &fits);
    uint8_t *buf = malloc(WRITE_STEP);
    if (cluster == NULL || buf == NULL) {
        free(cluster);
        free(buf);
        return error_set(err, ENOMEM, "'%s': no memory to create it", file->name);
    }

    // The old content is durably gone before the first new byte is written. The first sector,
    // written in one piece once everything that it points at is durable, makes the file an image.
    size_t cluster_size = (size_t)1 << o->cluster_bits;
    ret = file_do_blocking(file, FILE_TRUNCATE, 0, 0);
    if (ret == 0 && !file->fresh_is_zero)
        ret = erase_device(file, o, &l, buf);
    if (ret == 0)
        ret = file_do_blocking(file, FILE_DATASYNC, 0, 0);
    if (ret == 0 && cluster_size > SECTOR_BYTES)
        ret = file_write_blocking(file, cluster + SECTOR_BYTES, SECTOR_BYTES,
                                  cluster_size - SECTOR_BYTES);
    if (ret == 0)
        ret = create_write_tables(file, o, &l, buf);
    if (ret == 0)
        ret = fill_data(file, o, &l, buf);
    if (ret == 0)
        ret = file_do_blocking(file, FILE_DATASYNC, 0, 0);
    if (ret == 0)
        ret = file_write_blocking(file, cluster, 0, SECTOR_BYTES);
    if (ret == 0)
        ret = file_do_blocking(file, FILE_DATASYNC, 0, 0);
    free(cluster);
    free(buf);
    return ret < 0 ? write_failed(file, ret, err) : 0;
}
