// SPDX-License-Identifier: Apache-2.0
// reader.h: reads a qcow2 image in memory with as little code as possible and none of the engine's.
// The judges rely on it. Format: qcow2 specification.
#ifndef LAZYCOW_TESTS_SIM_READER_H
#define LAZYCOW_TESTS_SIM_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/sim/memory.h"

#define READER_TEXT 256

struct reader_l1 {
    uint64_t offset;
    uint32_t size; // entries
};

// Most snapshots of an image here; the forge makes no more.
#define READER_SNAPSHOTS_MAX 8

// The backing file: raw bytes or an image; both NULL: none.
struct reader_backing {
    const struct memory *raw;
    const struct reader *image;
};

struct reader {
    const struct memory *memory; // borrowed
    struct reader_backing backing;
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t cluster_size;
    uint64_t size;
    uint64_t incompatible;
    bool zstd;
    uint32_t refcount_order;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint64_t snapshot_table_offset;
    uint64_t snapshot_table_bytes;
    uint32_t snapshot_count;
    uint32_t bitmap_count; // those that are in step with the image
    uint64_t bitmap_directory;
    uint64_t bitmap_bytes;
    struct reader_l1 active;
    struct reader_l1 snapshots[READER_SNAPSHOTS_MAX];
};

// Decodes the header and the snapshot table. Returns false with the reason in text when it cannot.
bool reader_open(struct reader *reader, const struct memory *memory, struct reader_backing backing,
                 char *text);
uint64_t reader_read64(const struct reader *reader, uint64_t offset);
// Returns the L2 entry of a guest cluster, 0 where there is no table. l1 is active or a snapshot's.
uint64_t reader_entry(const struct reader *reader, const struct reader_l1 *l1, uint64_t cluster);
// Reads a guest cluster into buf, which has cluster_size bytes. Bytes beyond the size are
// undefined.
void reader_cluster(const struct reader *reader, const struct reader_l1 *l1, uint64_t cluster,
                    unsigned char *buf);
// Reads bytes of the active disk; zeros beyond its size.
void reader_bytes(const struct reader *reader, void *buf, uint64_t guest, uint64_t length);
// Returns the offset of the refcount block of a cluster, 0: there is none; the refcount in that
// block; and both in one call.
uint64_t reader_refcount_block(const struct reader *reader, uint64_t host_cluster);
uint64_t reader_refcount_in(const struct reader *reader, uint64_t block, uint64_t host_cluster);
uint64_t reader_refcount(const struct reader *reader, uint64_t host_cluster);

#endif
