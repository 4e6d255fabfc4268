// SPDX-License-Identifier: Apache-2.0
// inflated_cache.h: inflates compressed clusters and keeps them for later reads. Format: qcow2
// specification, "Compressed Clusters Descriptor".
//
// The life of an entry. Only a READY one has bytes that a reader may see: all of them were written
// by inflating the data that its key names.
//
//   EMPTY ── start_load ──> READING ── read ──> INFLATING ── a whole cluster came out ──> READY
//     ^                        │                    │                                       │
//     └──── the file failed ───┴── the data is bad ─┘      READING <── start_load, when it is the
//                                                                      oldest and room is needed
#ifndef LAZYCOW_QCOW2_REQUEST_INFLATED_CACHE_H
#define LAZYCOW_QCOW2_REQUEST_INFLATED_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/file.h"
#include "qcow2/base/offload.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"

struct image;
struct mapping;

// Memory in bytes for inflated clusters, enough for a few sequential readers, and the fewest
// clusters that are kept whatever their size.
#define INFLATED_KEPT_BYTES (8u << 20)
#define INFLATED_KEPT_MIN 4
#define INFLATED_KEPT_MAX 128

enum inflated_state {
    INFLATED_EMPTY,     // has no key
    INFLATED_READING,   // the compressed data is being read
    INFLATED_INFLATING, // it is being inflated, perhaps on another thread
    INFLATED_READY,     // bytes is the cluster
};

struct inflated {
    struct image *image;
    enum inflated_state state;
    // The key: the place of the compressed data in the file. Unused in state EMPTY.
    uint64_t host_offset;
    uint64_t host_length;
    // Value of lookups when the entry was last asked for.
    uint64_t used;
    unsigned char *bytes; // one cluster
    // The compressed data, host_length bytes, in READING and INFLATING; else NULL.
    unsigned char *packed;
    struct waitq waiters; // ops that wait for the end of loading
    int result;           // of inflating: 0 or a negative errno
    // Inside while the compressed data is read, so that its host clusters are not used again.
    struct epoch_member reading;
    struct file_io io;
    struct iovec iov;
    struct offload_job job;
};

struct inflated_cache {
    struct inflated *kept; // count of them; NULL before the first lookup
    size_t count;
    size_t loading;   // entries that are READING or INFLATING
    uint64_t lookups; // counts lookups, as the clock of struct inflated
    // Guest offset at which a sequential reader would continue.
    uint64_t sequential;
    struct waitq room; // ops that found every entry loading
};

void inflated_cache_init(struct inflated_cache *cache);
// No entry may be loading.
void inflated_cache_free(struct inflated_cache *cache);

// Most clusters that are loaded ahead of their readers: enough for a few cores to inflate at once.
#define INFLATED_AHEAD 8

// Begins to load the cluster, unless it is kept or enough others are being loaded.
void inflated_cache_prefetch(struct image *image, const struct mapping *m);

// Returns 0 and the cluster's bytes (valid until the op returns to the run queue), OP_PARKED (plan
// again), or a negative errno: -EIO when the compressed data is broken.
int inflated_cache_get(struct op *op, struct image *image, const struct mapping *m,
                       const unsigned char **bytes);

#endif
