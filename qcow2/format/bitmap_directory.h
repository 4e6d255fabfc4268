// SPDX-License-Identifier: Apache-2.0
// bitmap_directory.h: reads and validates the persistent dirty bitmaps of an image. lazycow does
// not maintain bitmaps, but must know which clusters they have. Format: qcow2 specification,
// "Bitmaps extension" and "Bitmaps".
#ifndef LAZYCOW_QCOW2_FORMAT_BITMAP_DIRECTORY_H
#define LAZYCOW_QCOW2_FORMAT_BITMAP_DIRECTORY_H

#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/format/header.h"

// QEMU's limits: counts and bytes.
#define BITMAP_COUNT_MAX 65535u
#define BITMAP_DIRECTORY_BYTES_MAX (64u << 20)
#define BITMAP_TABLE_ENTRIES_MAX (1u << 27)
#define BITMAP_DATA_BYTES_MAX (512u << 20) // of one bitmap
#define BITMAP_GRANULARITY_BITS_MAX 31
#define BITMAP_NAME_MAX 1023

#define BITMAP_FLAG_IN_USE (1u << 0)
#define BITMAP_FLAG_AUTO (1u << 1)

struct bitmap {
    uint64_t table_offset; // host bytes, cluster-aligned
    uint32_t table_size;   // entries
    uint32_t flags;
    uint8_t granularity_bits;
    const char *name; // owned by the directory; as in the image
};

struct bitmap_directory {
    size_t count;
    uint64_t offset; // host bytes
    uint64_t bytes;
    struct bitmap *bitmaps;
    uint8_t *storage; // what name points into
};

// Returns the header extension that leads to the directory, whatever the autoclear bit says of it,
// or NULL.
const struct header_extension *bitmap_directory_extension(const struct header *header);

// Reads the directory, blocking. It is empty when the image has none, or has one that is out of
// date (its autoclear bit is off). All tables lie inside the file, and together are no larger than
// the file. Returns 0 and a directory that the caller frees, or a negative errno with a message and
// an empty directory.
int bitmap_directory_read(struct file *file, const struct header *header,
                          struct bitmap_directory *directory, struct error *err);

// Frees the members and leaves the directory empty. directory may be zeroed.
void bitmap_directory_free(struct bitmap_directory *directory);

#endif
