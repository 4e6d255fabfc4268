// SPDX-License-Identifier: Apache-2.0
// header.h: the qcow2 header, decoded and validated. Format: qcow2 specification, "Header" and
// "Header extensions".
#ifndef LAZYCOW_QCOW2_FORMAT_HEADER_H
#define LAZYCOW_QCOW2_FORMAT_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"

// On-disk offsets that are rewritten in place while an image is open.
#define HEADER_OFFSET_REFCOUNT_TABLE 48 // u64 offset, then u32 clusters: 12 bytes inside one sector
#define HEADER_OFFSET_INCOMPATIBLE 72   // u64
#define HEADER_OFFSET_AUTOCLEAR 88      // u64

#define HEADER_INCOMPATIBLE_DIRTY (1ull << 0)
#define HEADER_INCOMPATIBLE_CORRUPT (1ull << 1)
#define HEADER_INCOMPATIBLE_DATA_FILE (1ull << 2)
#define HEADER_INCOMPATIBLE_COMPRESSION (1ull << 3)
#define HEADER_INCOMPATIBLE_EXTENDED_L2 (1ull << 4)
#define HEADER_COMPATIBLE_LAZY_REFCOUNTS (1ull << 0)

// Limits, those of QEMU (so that every image it opens is opened here, and no other): bytes or
// counts.
#define HEADER_CLUSTER_BITS_MIN 9
#define HEADER_CLUSTER_BITS_MAX 21
#define HEADER_L1_BYTES_MAX (32u << 20)
#define HEADER_REFCOUNT_TABLE_BYTES_MAX (8u << 20)
#define HEADER_SNAPSHOTS_MAX 65536u
#define HEADER_SNAPSHOT_TABLE_BYTES_MAX (64u << 20)
#define HEADER_BACKING_NAME_MAX 1023u
#define HEADER_OFFSET_LIMIT (1ull << 56) // host offsets are below this

struct header_extension {
    uint32_t type;
    uint32_t length;
    uint64_t offset; // of its data in the file
};

// More extensions than any writer makes; a header cluster of 2 MiB could hold 262 144 empty ones.
#define HEADER_EXTENSIONS_MAX 64

struct header {
    uint32_t version;             // 2 or 3
    uint64_t backing_name_offset; // 0: no backing file
    uint32_t backing_name_length;
    uint32_t cluster_bits;
    uint64_t size; // guest bytes
    uint32_t crypt_method;
    uint32_t l1_size; // entries
    uint64_t l1_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t snapshot_count;
    uint64_t snapshot_offset;
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t refcount_order;  // a refcount has 1 << refcount_order bits, 0..6
    uint32_t header_length;   // bytes
    uint8_t compression_type; // 0 zlib, 1 zstd
    uint64_t crypto_offset;   // of the LUKS header, and its bytes; 0: none, or another encryption
    uint64_t crypto_length;

    char backing_name[HEADER_BACKING_NAME_MAX + 1];            // "" : none
    char backing_format[64];                                   // "" : the header names none
    struct header_extension extensions[HEADER_EXTENSIONS_MAX]; // in file order, all types
    size_t extension_count;
};

// Reads the first cluster's header and extensions, blocking, and checks every field against the
// limits and against each other, before anything is allocated from them. Refuses features that the
// engine lacks by their name (from the feature name table where the image has one). Unknown
// compatible and autoclear bits and extensions are no error. Returns 0, or a negative errno with a
// message that names the file. -ENOTSUP: a feature; -EINVAL: not qcow2, or broken.
int header_read(struct file *file, struct header *header, struct error *err);

// As header_read but only decodes and validates what describes the layout, without refusing
// unsupported features or a missing refcount table; for `lazycow info` and `lazycow check`.
int header_read_any(struct file *file, struct header *header, struct error *err);

// What header_read_any does, without a file: first_cluster is the image's first cluster, length
// bytes of it (at least 512; the cluster size is checked to be no more). name is for messages.
int header_decode(const uint8_t *first_cluster, size_t length, const char *name,
                  struct header *header, struct error *err);

// Refuses, with -ENOTSUP and a message that names them, the features of header that are not
// supported. first_cluster as for header_decode: the feature name table is looked up there.
int header_check_features(const uint8_t *first_cluster, size_t length, const char *name,
                          const struct header *header, struct error *err);

// Writes header, its backing format, the feature name table (version 3, where there is room) and
// the backing file name into first_cluster, length bytes that are zero: one cluster. Sets
// header->header_length, backing_name_offset and backing_name_length; other extensions of
// header are not written. Returns 0, or -ENOSPC where the names do not fit one cluster.
int header_encode(struct header *header, uint8_t *first_cluster, size_t length);

// What the fields say. Bytes, counts.
static inline uint64_t header_cluster_size(const struct header *header)
{
    return 1ull << header->cluster_bits;
}

// Guest bytes are mapped by L2 entries of 8 bytes, or 16 where they are extended.
static inline unsigned header_l2_entry_bytes(const struct header *header)
{
    return header->incompatible & HEADER_INCOMPATIBLE_EXTENDED_L2 ? 16 : 8;
}

// Guest bytes that one L1 entry maps, as a power of two.
static inline unsigned header_l1_shift(const struct header *header)
{
    return 2 * header->cluster_bits - (header_l2_entry_bytes(header) == 16 ? 4 : 3);
}

// L1 entries that size guest bytes need.
static inline uint64_t header_l1_entries(const struct header *header, uint64_t size)
{
    return size == 0 ? 0 : ((size - 1) >> header_l1_shift(header)) + 1;
}

#endif
