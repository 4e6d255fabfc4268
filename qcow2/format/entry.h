// SPDX-License-Identifier: Apache-2.0
// entry.h: decodes a raw L2 entry into a tagged struct. Format: qcow2 specification, "L2 table
// entry", "Standard Cluster Descriptor", "Compressed Clusters Descriptor".
#ifndef LAZYCOW_QCOW2_FORMAT_ENTRY_H
#define LAZYCOW_QCOW2_FORMAT_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/format/format.h"
#include "qcow2/format/header.h"

enum entry_kind {
    ENTRY_UNALLOCATED, // the backing file shows through, or zeros
    ENTRY_ZERO,        // zeros, no host cluster
    // Zeros, with a host cluster in reserve whose content does not matter.
    ENTRY_ZERO_ALLOCATED,
    ENTRY_DATA,
    ENTRY_COMPRESSED,
    ENTRY_INVALID, // breaks the format
};

struct entry {
    enum entry_kind kind;
    bool copied; // DATA, ZERO_ALLOCATED: the refcount is one, write in place
    // DATA, ZERO_ALLOCATED: of the cluster. COMPRESSED: of the first byte of its data.
    uint64_t host_offset;
    // COMPRESSED: most bytes that its data takes.
    uint64_t host_length;
};

// Properties of the image that decide which of its entries are valid.
struct entry_context {
    unsigned version;
    unsigned cluster_bits;
    // Size of the file when it was opened. No program adds compressed data to an image that is
    // served.
    uint64_t file_bytes;
};

// Returns true when compressed data may begin there: neither in the header nor beyond the end of
// the file.
static inline bool entry_compressed_placed(uint64_t host_offset,
                                           const struct entry_context *context)
{
    return host_offset >> context->cluster_bits != 0 && host_offset < context->file_bytes &&
           host_offset < HEADER_OFFSET_LIMIT;
}

// Decodes an entry in host byte order. Ignores reserved bits, as QEMU does; only check looks at
// them.
static inline struct entry entry_decode(uint64_t raw, const struct entry_context *context)
{
    unsigned cluster_bits = context->cluster_bits;
    struct entry e = {.kind = ENTRY_INVALID};

    if (raw & FORMAT_COMPRESSED) {
        e.host_offset = format_compressed_offset(raw, cluster_bits);
        e.host_length = format_compressed_length(raw, cluster_bits);
        if (!(raw & FORMAT_COPIED) && entry_compressed_placed(e.host_offset, context))
            e.kind = ENTRY_COMPRESSED;
        return e;
    }
    e.copied = (raw & FORMAT_COPIED) != 0;
    e.host_offset = raw & FORMAT_L2_OFFSET_MASK;
    if (e.host_offset & ((1ull << cluster_bits) - 1))
        return e;
    if (raw & FORMAT_L2_ZERO) {
        if (context->version >= 3)
            e.kind = e.host_offset ? ENTRY_ZERO_ALLOCATED : ENTRY_ZERO;
    } else {
        e.kind = e.host_offset ? ENTRY_DATA : ENTRY_UNALLOCATED;
    }
    return e;
}

static inline uint64_t entry_data(uint64_t host_offset)
{
    return host_offset | FORMAT_COPIED;
}

static inline uint64_t entry_zero_allocated(uint64_t host_offset)
{
    return host_offset | FORMAT_COPIED | FORMAT_L2_ZERO;
}

#endif
