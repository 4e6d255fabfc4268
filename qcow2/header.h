// SPDX-License-Identifier: Apache-2.0
// header.h: the qcow2 header, decoded and validated. Format: qcow2 specification, "Header" and
// "Header extensions".
#ifndef LAZYCOW_QCOW2_HEADER_H
#define LAZYCOW_QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/error.h"
#include "qcow2/file.h"

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
// unsupported features; for `lazycow info`.
int header_read_any(struct file *file, struct header *header, struct error *err);

#endif
