// SPDX-License-Identifier: Apache-2.0
// geometry.h: converts guest offsets to table indices with the widths in the header. Format: qcow2
// specification, "Cluster mapping" and "Host cluster management".
#ifndef LAZYCOW_QCOW2_FORMAT_GEOMETRY_H
#define LAZYCOW_QCOW2_FORMAT_GEOMETRY_H

#include <stddef.h>
#include <stdint.h>

#include "qcow2/format/header.h"

// Metadata is read, cached and written in pieces of at most this size (a power of two of bytes). It
// is a page of the host: a table write then costs one page of journal and disk, while a whole table
// may be 2 MiB.
#define GEOMETRY_PIECE_BITS_MAX 12

struct geometry {
    unsigned cluster_bits;
    unsigned l2_bits;        // an L2 table has 1 << l2_bits entries
    unsigned piece_bits;     // a piece of metadata has 1 << piece_bits bytes
    unsigned refcount_order; // a refcount has 1 << refcount_order bits
    unsigned block_bits;     // a refcount block has 1 << block_bits refcounts
    uint64_t cluster_size;   // bytes
    size_t piece_bytes;
};

static inline struct geometry geometry_from_header(const struct header *header)
{
    struct geometry g = {.cluster_bits = header->cluster_bits,
                         .l2_bits = header->cluster_bits - 3,
                         .refcount_order = header->refcount_order,
                         .block_bits = header->cluster_bits + 3 - header->refcount_order,
                         .cluster_size = 1ull << header->cluster_bits};

    g.piece_bits =
        g.cluster_bits < GEOMETRY_PIECE_BITS_MAX ? g.cluster_bits : GEOMETRY_PIECE_BITS_MAX;
    g.piece_bytes = (size_t)1 << g.piece_bits;
    return g;
}

static inline uint64_t geometry_in_cluster(const struct geometry *g, uint64_t offset)
{
    return offset & (g->cluster_size - 1);
}

static inline uint64_t geometry_cluster_start(const struct geometry *g, uint64_t offset)
{
    return offset & ~(g->cluster_size - 1);
}

// Returns the number of clusters that hold the given bytes.
static inline uint64_t geometry_clusters(const struct geometry *g, uint64_t bytes)
{
    return (bytes >> g->cluster_bits) + (geometry_in_cluster(g, bytes) != 0);
}

// Returns the guest bytes that one L2 table maps.
static inline uint64_t geometry_l2_span(const struct geometry *g)
{
    return 1ull << (g->cluster_bits + g->l2_bits);
}

static inline uint64_t geometry_l1_index(const struct geometry *g, uint64_t guest)
{
    return guest >> (g->cluster_bits + g->l2_bits);
}

static inline uint64_t geometry_l2_index(const struct geometry *g, uint64_t guest)
{
    return (guest >> g->cluster_bits) & ((1ull << g->l2_bits) - 1);
}

#endif
