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

// Offsets on disk of fields that are rewritten in place while an image is open.
// A u64 offset, then a u32 number of clusters: 12 bytes inside one sector.
#define HEADER_OFFSET_REFCOUNT_TABLE 48
#define HEADER_OFFSET_INCOMPATIBLE 72 // u64
#define HEADER_OFFSET_AUTOCLEAR 88    // u64

#define HEADER_INCOMPATIBLE_DIRTY (1ull << 0)
#define HEADER_INCOMPATIBLE_CORRUPT (1ull << 1)
#define HEADER_INCOMPATIBLE_DATA_FILE (1ull << 2)
#define HEADER_INCOMPATIBLE_COMPRESSION (1ull << 3)
#define HEADER_INCOMPATIBLE_EXTENDED_L2 (1ull << 4)
#define HEADER_COMPATIBLE_LAZY_REFCOUNTS (1ull << 0)

// QEMU's limits, in bytes or counts, so that lazycow opens exactly the images that QEMU opens.
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

// Most extensions of a header. No writer makes so many; a header cluster of 2 MiB could hold 262
// 144 empty ones.
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
    // Offset of the LUKS header, and its length in bytes; 0: none, or another encryption.
    uint64_t crypto_offset;
    uint64_t crypto_length;

    char backing_name[HEADER_BACKING_NAME_MAX + 1];            // "" : none
    char backing_format[64];                                   // "" : the header names none
    struct header_extension extensions[HEADER_EXTENSIONS_MAX]; // in file order, all types
    size_t extension_count;
};

// Reads the first cluster's header and extensions, blocking. Checks every field against the limits
// and against the other fields before anything is allocated from it. Refuses features that the
// engine lacks by their name, from the feature name table if the image has one. Ignores unknown
// compatible and autoclear bits and extensions. Returns 0, or a negative errno with a message that
// names the file: -ENOTSUP for a feature, -EINVAL for a file that is not qcow2 or is broken.
int header_read(struct file *file, struct header *header, struct error *err);

// Decodes and validates only the fields that describe the layout; accepts unsupported features and
// a missing refcount table. For `lazycow info` and `lazycow check`. Returns as header_read.
int header_read_any(struct file *file, struct header *header, struct error *err);

// Does the work of header_read_any without a file. first_cluster is the image's first cluster,
// length bytes of it (at least 512; a larger cluster size in the header is refused). name is for
// messages.
int header_decode(const uint8_t *first_cluster, size_t length, const char *name,
                  struct header *header, struct error *err);

// Refuses unsupported features of header with -ENOTSUP and a message that names them. first_cluster
// (as for header_decode) has the feature name table.
int header_check_features(const uint8_t *first_cluster, size_t length, const char *name,
                          const struct header *header, struct error *err);

// Writes header, its backing format, the feature name table (version 3, if there is room) and the
// backing file name into first_cluster, which is one cluster of length zero bytes. Sets
// header->header_length, backing_name_offset and backing_name_length. Does not write other
// extensions. Returns 0, or -ENOSPC when the names do not fit one cluster.
int header_encode(struct header *header, uint8_t *first_cluster, size_t length);

// Values derived from the fields, in bytes or counts.
static inline uint64_t header_cluster_size(const struct header *header)
{
    return 1ull << header->cluster_bits;
}

// Returns the bytes of an L2 entry: 8, or 16 with extended L2 entries.
static inline unsigned header_l2_entry_bytes(const struct header *header)
{
    return header->incompatible & HEADER_INCOMPATIBLE_EXTENDED_L2 ? 16 : 8;
}

// Returns log2 of the guest bytes that one L1 entry maps.
static inline unsigned header_l1_shift(const struct header *header)
{
    return 2 * header->cluster_bits - (header_l2_entry_bytes(header) == 16 ? 4 : 3);
}

// Returns the number of L1 entries that size guest bytes need.
static inline uint64_t header_l1_entries(const struct header *header, uint64_t size)
{
    return size == 0 ? 0 : ((size - 1) >> header_l1_shift(header)) + 1;
}

#endif
