// SPDX-License-Identifier: Apache-2.0
// compress.h: compressed clusters, inflated once and kept for the reads that follow. Format: qcow2
// specification, "Compressed Clusters Descriptor".
#ifndef LAZYCOW_QCOW2_REQUEST_COMPRESS_H
#define LAZYCOW_QCOW2_REQUEST_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/file.h"
#include "qcow2/base/offload.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"

struct image;
struct op;
struct mapping;

// Inflated clusters that are kept: a few sequential readers' worth.
#define COMPRESS_KEPT_BYTES (8u << 20)
#define COMPRESS_KEPT_MIN 4
#define COMPRESS_KEPT_MAX 128

struct inflated {
    struct image *image;
    uint64_t host_offset; // of the compressed data; 0: unused
    uint64_t host_length;
    bool loading;
    uint64_t used;        // when, counted in looks
    unsigned char *bytes; // one cluster
    unsigned char *packed;
    struct waitq waiters;
    int result;   // of inflating
    struct op op; // internal: keeps the host clusters from being used again while they are read
    struct file_io io;
    struct iovec iov;
    struct offload_job job;
};

struct compress {
    struct inflated *kept;
    size_t count;
    size_t loading; // entries that are being read or inflated
    uint64_t looks;
    uint64_t sequential; // guest offset where a sequential reader would go on
    struct waitq room;
};

void compress_init(struct compress *c);
void compress_free(struct compress *c);

// Clusters that may be on their way for nobody yet: enough for a few cores to inflate at once.
#define COMPRESS_AHEAD 8

// Begins to read and inflate the cluster, if it is not kept and little else is on its way.
void compress_prefetch(struct image *image, const struct mapping *m);

// Returns 0 and the cluster's bytes (until the op returns to the run queue), OP_PARKED (plan
// again), or a negative errno: -EIO where the data is broken.
int compress_get(struct op *op, struct image *image, const struct mapping *m,
                 const unsigned char **bytes);

#endif
