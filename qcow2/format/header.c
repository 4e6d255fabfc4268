// SPDX-License-Identifier: Apache-2.0
#include "qcow2/format/header.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/format/foreign.h"
#include "qcow2/format/format.h"

// Size of the smallest cluster, which is read first to learn the cluster size.
#define PROBE_BYTES (1u << HEADER_CLUSTER_BITS_MIN)

#define SUPPORTED_INCOMPATIBLE                                                                     \
    (HEADER_INCOMPATIBLE_DIRTY | HEADER_INCOMPATIBLE_CORRUPT | HEADER_INCOMPATIBLE_COMPRESSION)

struct feature_name {
    uint8_t kind;
    uint8_t bit;
    const char *name;
};

// Names of the bits that the specification defines, as other writers of the format spell them.
static const struct feature_name feature_names[] = {
    {FORMAT_FEATURE_INCOMPATIBLE, 0, "dirty bit"},
    {FORMAT_FEATURE_INCOMPATIBLE, 1, "corrupt bit"},
    {FORMAT_FEATURE_INCOMPATIBLE, 2, "external data file"},
    {FORMAT_FEATURE_INCOMPATIBLE, 3, "compression type"},
    {FORMAT_FEATURE_INCOMPATIBLE, 4, "extended L2 entries"},
    {FORMAT_FEATURE_COMPATIBLE, 0, "lazy refcounts"},
    {FORMAT_FEATURE_AUTOCLEAR, 0, "bitmaps"},
    {FORMAT_FEATURE_AUTOCLEAR, 1, "raw external data"},
};
#define FEATURE_NAME_COUNT (sizeof(feature_names) / sizeof(feature_names[0]))

// Sets the message for an image that violates the format. Returns -EINVAL.
static int header_broken(struct error *err, const char *name, const char *what)
{
    return error_set(err, EINVAL,
                     "'%s': broken qcow2 header: %s; restore it from a backup, nothing was changed",
                     name, what);
}

// Checks magic, version and cluster size, which are needed to read the rest.
static int check_start(const uint8_t *start, const char *name, struct error *err)
{
    if (format_get32(start + FORMAT_HEADER_MAGIC) != FORMAT_MAGIC)
        return error_set(
            err, EINVAL,
            "'%s': not a qcow2 image; name the right file, or say that it is raw (-f raw; "
            "-F raw of a backing file)",
            name);

    uint32_t version = format_get32(start + FORMAT_HEADER_VERSION);
    if (version != 2 && version != 3)
        return error_set(
            err, ENOTSUP,
            "'%s': qcow2 version %" PRIu32
            " is not supported, 2 and 3 are; convert it with 'qemu-img convert -O qcow2'",
            name, version);

    uint32_t bits = format_get32(start + FORMAT_HEADER_CLUSTER_BITS);
    if (bits < HEADER_CLUSTER_BITS_MIN || bits > HEADER_CLUSTER_BITS_MAX)
        return header_broken(err, name, "cluster size is not between 512 bytes and 2 MiB");
    return 0;
}

// Decodes the fields up to the extensions, without checks.
static void decode_fields(const uint8_t *p, struct header *h)
{
    h->version = format_get32(p + FORMAT_HEADER_VERSION);
    h->backing_name_offset = format_get64(p + FORMAT_HEADER_BACKING_OFFSET);
    h->backing_name_length = format_get32(p + FORMAT_HEADER_BACKING_LENGTH);
    h->cluster_bits = format_get32(p + FORMAT_HEADER_CLUSTER_BITS);
    h->size = format_get64(p + FORMAT_HEADER_SIZE);
    h->crypt_method = format_get32(p + FORMAT_HEADER_CRYPT_METHOD);
    h->l1_size = format_get32(p + FORMAT_HEADER_L1_SIZE);
    h->l1_offset = format_get64(p + FORMAT_HEADER_L1_OFFSET);
    h->refcount_table_offset = format_get64(p + FORMAT_HEADER_REFCOUNT_TABLE_OFFSET);
    h->refcount_table_clusters = format_get32(p + FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS);
    h->snapshot_count = format_get32(p + FORMAT_HEADER_SNAPSHOT_COUNT);
    h->snapshot_offset = format_get64(p + FORMAT_HEADER_SNAPSHOT_OFFSET);
    if (h->version == 2) {
        h->refcount_order = FORMAT_REFCOUNT_ORDER_V2;
        h->header_length = FORMAT_HEADER_V2_BYTES;
        return;
    }
    h->incompatible = format_get64(p + FORMAT_HEADER_INCOMPATIBLE);
    h->compatible = format_get64(p + FORMAT_HEADER_COMPATIBLE);
    h->autoclear = format_get64(p + FORMAT_HEADER_AUTOCLEAR);
    h->refcount_order = format_get32(p + FORMAT_HEADER_REFCOUNT_ORDER);
    h->header_length = format_get32(p + FORMAT_HEADER_LENGTH);
    if (h->header_length > FORMAT_HEADER_COMPRESSION_TYPE)
        h->compression_type = p[FORMAT_HEADER_COMPRESSION_TYPE];
}

// Returns true when a table of the given bytes at offset is aligned and below the limit of host
// offsets.
static bool table_placed(const struct header *h, uint64_t offset, uint64_t bytes)
{
    return offset % header_cluster_size(h) == 0 && offset < HEADER_OFFSET_LIMIT &&
           bytes <= HEADER_OFFSET_LIMIT - offset;
}

static int check_fields(const struct header *h, const char *name, struct error *err)
{
    uint64_t cluster_size = header_cluster_size(h);

    if (h->version == 3 && h->header_length < FORMAT_HEADER_V3_BYTES_MIN)
        return header_broken(err, name, "header length is too small");
    if (h->header_length > cluster_size)
        return header_broken(err, name, "header length exceeds the cluster size");
    if (h->refcount_order > FORMAT_REFCOUNT_ORDER_MAX)
        return header_broken(err, name, "refcounts are wider than 64 bits");
    if (h->crypt_method > FORMAT_CRYPT_LUKS)
        return header_broken(err, name, "unknown encryption method");
    if ((h->compression_type != FORMAT_COMPRESSION_ZLIB) !=
        ((h->incompatible & HEADER_INCOMPATIBLE_COMPRESSION) != 0))
        return header_broken(err, name, "compression type and its feature bit disagree");

    if (h->refcount_table_clusters > HEADER_REFCOUNT_TABLE_BYTES_MAX >> h->cluster_bits)
        return header_broken(err, name, "refcount table is larger than 8 MiB");
    if (!table_placed(h, h->refcount_table_offset,
                      (uint64_t)h->refcount_table_clusters << h->cluster_bits))
        return header_broken(err, name, "refcount table is not at a valid offset");
    if (h->refcount_table_clusters > 0 && h->refcount_table_offset == 0)
        return header_broken(err, name, "refcount table lies over the header");

    if (h->snapshot_count > HEADER_SNAPSHOTS_MAX)
        return header_broken(err, name, "more than 65536 snapshots");
    if (!table_placed(h, h->snapshot_offset, (uint64_t)h->snapshot_count * FORMAT_SNAPSHOT_BYTES))
        return header_broken(err, name, "snapshot table is not at a valid offset");
    if (h->snapshot_count > 0 && h->snapshot_offset == 0)
        return header_broken(err, name, "snapshot table lies over the header");

    if (h->l1_size > HEADER_L1_BYTES_MAX / FORMAT_ENTRY_BYTES)
        return header_broken(err, name, "L1 table is larger than 32 MiB");
    if (header_l1_entries(h, h->size) > h->l1_size)
        return header_broken(err, name, "L1 table is too small for the size of the disk");
    if (!table_placed(h, h->l1_offset, (uint64_t)h->l1_size * FORMAT_ENTRY_BYTES))
        return header_broken(err, name, "L1 table is not at a valid offset");
    if (h->l1_size > 0 && h->l1_offset == 0)
        return header_broken(err, name, "L1 table lies over the header");
    return 0;
}

static int decode_backing_name(const uint8_t *cluster, struct header *h, const char *name,
                               struct error *err)
{
    if (h->backing_name_offset == 0)
        return 0;

    uint64_t cluster_size = header_cluster_size(h);
    if (h->backing_name_offset > cluster_size)
        return header_broken(err, name, "backing file name lies outside of the first cluster");
    if (h->backing_name_length > HEADER_BACKING_NAME_MAX ||
        h->backing_name_length > cluster_size - h->backing_name_offset)
        return header_broken(err, name, "backing file name is too long");
    memcpy(h->backing_name, cluster + h->backing_name_offset, h->backing_name_length);
    h->backing_name[h->backing_name_length] = '\0';
    return 0;
}

static int decode_extensions(const uint8_t *cluster, struct header *h, const char *name,
                             struct error *err)
{
    // Extensions end where the backing file name begins.
    uint64_t end = h->backing_name_offset != 0 ? h->backing_name_offset : header_cluster_size(h);
    uint64_t pos = h->header_length;

    while (pos < end) {
        if (end - pos < FORMAT_EXTENSION_BYTES)
            return header_broken(err, name, "header extension does not fit");

        uint32_t type = format_get32(cluster + pos);
        uint32_t length = format_get32(cluster + pos + 4);
        pos += FORMAT_EXTENSION_BYTES;
        if (type == FORMAT_EXTENSION_END)
            return 0;
        if (length > end - pos)
            return header_broken(err, name, "header extension does not fit");
        if (h->extension_count == HEADER_EXTENSIONS_MAX)
            return header_broken(err, name, "more than 64 header extensions");
        h->extensions[h->extension_count++] =
            (struct header_extension){.type = type, .length = length, .offset = pos};
        if (type == FORMAT_EXTENSION_BACKING_FORMAT) {
            if (length >= sizeof(h->backing_format))
                return header_broken(err, name, "name of the backing format is too long");
            memcpy(h->backing_format, cluster + pos, length);
            h->backing_format[length] = '\0';
        }
        if (type == FORMAT_EXTENSION_CRYPTO && h->crypt_method == FORMAT_CRYPT_LUKS) {
            if (length < FORMAT_CRYPTO_EXTENSION_BYTES)
                return header_broken(err, name, "encryption header pointer is too short");
            h->crypto_offset = format_get64(cluster + pos);
            h->crypto_length = format_get64(cluster + pos + 8);
            if (h->crypto_offset >= HEADER_OFFSET_LIMIT ||
                h->crypto_length > HEADER_OFFSET_LIMIT - h->crypto_offset)
                return header_broken(err, name, "encryption header is not at a valid offset");
        }
        pos += ((uint64_t)length + 7) & ~7ull;
    }
    return 0;
}

int header_decode(const uint8_t *first_cluster, size_t length, const char *name,
                  struct header *header, struct error *err)
{
    int ret;

    memset(header, 0, sizeof(*header));
    if (length < PROBE_BYTES)
        return header_broken(err, name, "it is cut off");
    ret = check_start(first_cluster, name, err);
    if (ret < 0)
        return ret;
    decode_fields(first_cluster, header);
    if (length < header_cluster_size(header))
        return header_broken(err, name, "it is cut off");
    ret = check_fields(header, name, err);
    if (ret < 0)
        return ret;
    ret = decode_backing_name(first_cluster, header, name, err);
    if (ret < 0)
        return ret;
    return decode_extensions(first_cluster, header, name, err);
}

// Appends the name of an incompatible feature bit to text: the image's own name, lazycow's name, or
// the bit's number.
static void append_feature_name(const uint8_t *cluster, const struct header *h, unsigned bit,
                                char *text, size_t size)
{
    char found[FORMAT_FEATURE_NAME_LENGTH + 1] = "";

    for (size_t i = 0; i < h->extension_count && found[0] == '\0'; i++) {
        const struct header_extension *e = &h->extensions[i];

        if (e->type != FORMAT_EXTENSION_FEATURE_NAMES)
            continue;
        for (uint32_t pos = 0; pos + FORMAT_FEATURE_NAME_BYTES <= e->length;
             pos += FORMAT_FEATURE_NAME_BYTES) {
            const uint8_t *entry = cluster + e->offset + pos;

            if (entry[0] != FORMAT_FEATURE_INCOMPATIBLE || entry[1] != bit)
                continue;
            memcpy(found, entry + 2, FORMAT_FEATURE_NAME_LENGTH);
            break;
        }
    }
    for (size_t i = 0; i < FEATURE_NAME_COUNT && found[0] == '\0'; i++) {
        if (feature_names[i].kind == FORMAT_FEATURE_INCOMPATIBLE && feature_names[i].bit == bit)
            snprintf(found, sizeof(found), "%s", feature_names[i].name);
    }
    if (found[0] == '\0')
        snprintf(found, sizeof(found), "incompatible feature bit %u", bit);

    // Unprintable bytes are replaced: the name comes from the image and goes to a terminal.
    for (char *c = found; *c != '\0'; c++) {
        if ((unsigned char)*c < ' ' || (unsigned char)*c > '~')
            *c = '?';
    }
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s", used > 0 ? ", " : "", found);
}

int header_check_features(const uint8_t *first_cluster, size_t length, const char *name,
                          const struct header *header, struct error *err)
{
    char missing[ERROR_TEXT_MAX / 2] = "";
    uint64_t unknown = header->incompatible & ~SUPPORTED_INCOMPATIBLE;

    if (length < header_cluster_size(header))
        return header_broken(err, name, "it is cut off");
    for (unsigned bit = 0; bit < 64; bit++) {
        if (unknown & (1ull << bit))
            append_feature_name(first_cluster, header, bit, missing, sizeof(missing));
    }
    size_t used = strlen(missing);
    if (header->compression_type > FORMAT_COMPRESSION_ZSTD)
        snprintf(missing + used, sizeof(missing) - used, "%scompression type %u", used ? ", " : "",
                 (unsigned)header->compression_type);
    used = strlen(missing);
    if (header->crypt_method != FORMAT_CRYPT_NONE)
        snprintf(missing + used, sizeof(missing) - used, "%s%s encryption", used ? ", " : "",
                 header->crypt_method == FORMAT_CRYPT_LUKS ? "LUKS" : "AES");
    if (missing[0] == '\0')
        return 0;
    return error_set(err, ENOTSUP,
                     "'%s': uses what lazycow does not support: %s; convert it with "
                     "'qemu-img convert -O qcow2'",
                     name, missing);
}

// Refuses files of other formats and files without a qcow2 header.
static int check_kind(struct file *file, const uint8_t *start, struct error *err)
{
    const struct foreign_format *foreign = foreign_format_of(file);
    int64_t size = file_size(file);

    if (foreign)
        return foreign_format_refuse(foreign, file->name, err);
    if (size == 0)
        return error_set(err, EINVAL,
                         "'%s': is empty, not a qcow2 image; name the right file, or make an image "
                         "with 'lazycow create'",
                         file->name);
    if (format_get32(start + FORMAT_HEADER_MAGIC) == FORMAT_MAGIC && size > 0 &&
        size < (format_get32(start + FORMAT_HEADER_VERSION) == 3 ? FORMAT_HEADER_V3_BYTES_MIN
                                                                 : FORMAT_HEADER_V2_BYTES))
        return header_broken(err, file->name, "it is cut off");
    return 0;
}

static int read_with(struct file *file, struct header *header, bool check_features,
                     struct error *err)
{
    uint8_t probe[PROBE_BYTES];
    int ret = file_read_blocking(file, probe, 0, sizeof(probe));
    if (ret < 0)
        return error_set(err, -ret, "'%s': cannot read the header: %s", file->name, strerror(-ret));
    ret = check_kind(file, probe, err);
    if (ret == 0)
        ret = check_start(probe, file->name, err);
    if (ret < 0)
        return ret;

    size_t length = (size_t)1 << format_get32(probe + FORMAT_HEADER_CLUSTER_BITS);
    uint8_t *cluster = malloc(length);
    if (cluster == NULL)
        return error_set(err, ENOMEM, "'%s': no memory for the header", file->name);
    ret = file_read_blocking(file, cluster, 0, length);
    if (ret < 0)
        error_set(err, -ret, "'%s': cannot read the header: %s", file->name, strerror(-ret));
    else
        ret = header_decode(cluster, length, file->name, header, err);
    if (ret == 0 && check_features)
        ret = header_check_features(cluster, length, file->name, header, err);
    free(cluster);
    return ret;
}

int header_read(struct file *file, struct header *header, struct error *err)
{
    int ret = read_with(file, header, true, err);
    if (ret == 0 && header->refcount_table_clusters == 0)
        ret = error_set(err, EINVAL,
                        "'%s': has no refcount table; repair it with lazycow check -r all",
                        file->name);
    return ret;
}

int header_read_any(struct file *file, struct header *header, struct error *err)
{
    return read_with(file, header, false, err);
}

static void encode_fields(const struct header *h, uint8_t *p)
{
    format_put32(p + FORMAT_HEADER_MAGIC, FORMAT_MAGIC);
    format_put32(p + FORMAT_HEADER_VERSION, h->version);
    format_put64(p + FORMAT_HEADER_BACKING_OFFSET, h->backing_name_offset);
    format_put32(p + FORMAT_HEADER_BACKING_LENGTH, h->backing_name_length);
    format_put32(p + FORMAT_HEADER_CLUSTER_BITS, h->cluster_bits);
    format_put64(p + FORMAT_HEADER_SIZE, h->size);
    format_put32(p + FORMAT_HEADER_CRYPT_METHOD, h->crypt_method);
    format_put32(p + FORMAT_HEADER_L1_SIZE, h->l1_size);
    format_put64(p + FORMAT_HEADER_L1_OFFSET, h->l1_offset);
    format_put64(p + FORMAT_HEADER_REFCOUNT_TABLE_OFFSET, h->refcount_table_offset);
    format_put32(p + FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS, h->refcount_table_clusters);
    format_put32(p + FORMAT_HEADER_SNAPSHOT_COUNT, h->snapshot_count);
    format_put64(p + FORMAT_HEADER_SNAPSHOT_OFFSET, h->snapshot_offset);
    if (h->version == 2)
        return;
    format_put64(p + FORMAT_HEADER_INCOMPATIBLE, h->incompatible);
    format_put64(p + FORMAT_HEADER_COMPATIBLE, h->compatible);
    format_put64(p + FORMAT_HEADER_AUTOCLEAR, h->autoclear);
    format_put32(p + FORMAT_HEADER_REFCOUNT_ORDER, h->refcount_order);
    format_put32(p + FORMAT_HEADER_LENGTH, h->header_length);
    p[FORMAT_HEADER_COMPRESSION_TYPE] = h->compression_type;
}

int header_encode(struct header *header, uint8_t *first_cluster, size_t length)
{
    size_t format_length = strlen(header->backing_format);
    size_t format_bytes =
        format_length > 0 ? FORMAT_EXTENSION_BYTES + ((format_length + 7) & ~(size_t)7) : 0;
    size_t name_length = strlen(header->backing_name);
    size_t names_bytes = FORMAT_EXTENSION_BYTES + FEATURE_NAME_COUNT * FORMAT_FEATURE_NAME_BYTES;

    header->header_length = header->version == 2 ? FORMAT_HEADER_V2_BYTES : FORMAT_HEADER_V3_BYTES;
    size_t needed = header->header_length + format_bytes + FORMAT_EXTENSION_BYTES + name_length;
    if (needed > length)
        return -ENOSPC;

    size_t pos = header->header_length;
    if (format_bytes > 0) {
        format_put32(first_cluster + pos, FORMAT_EXTENSION_BACKING_FORMAT);
        format_put32(first_cluster + pos + 4, (uint32_t)format_length);
        memcpy(first_cluster + pos + FORMAT_EXTENSION_BYTES, header->backing_format, format_length);
        pos += format_bytes;
    }
    // Left out where small clusters and long names leave no room: the table only helps readers of
    // messages.
    if (header->version >= 3 && names_bytes <= length - needed) {
        format_put32(first_cluster + pos, FORMAT_EXTENSION_FEATURE_NAMES);
        format_put32(first_cluster + pos + 4, FEATURE_NAME_COUNT * FORMAT_FEATURE_NAME_BYTES);
        pos += FORMAT_EXTENSION_BYTES;
        for (size_t i = 0; i < FEATURE_NAME_COUNT; i++) {
            first_cluster[pos] = feature_names[i].kind;
            first_cluster[pos + 1] = feature_names[i].bit;
            memcpy(first_cluster + pos + 2, feature_names[i].name, strlen(feature_names[i].name));
            pos += FORMAT_FEATURE_NAME_BYTES;
        }
    }
    // The extensions end with zeros, which are there already.
    pos += FORMAT_EXTENSION_BYTES;
    header->backing_name_offset = name_length > 0 ? pos : 0;
    header->backing_name_length = (uint32_t)name_length;
    memcpy(first_cluster + pos, header->backing_name, name_length);
    encode_fields(header, first_cluster);
    return 0;
}
