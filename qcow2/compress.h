// SPDX-License-Identifier: Apache-2.0
// compress.h: compressed clusters, inflated once and kept for the reads that follow. Format: qcow2
// specification, "Compressed Clusters Descriptor"; the data is a raw deflate stream.
#ifndef LAZYCOW_QCOW2_COMPRESS_H
#define LAZYCOW_QCOW2_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/file.h"
#include "qcow2/waitq.h"

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
    struct file_io io;
    struct iovec iov;
};

struct compress {
    struct inflated *kept;
    size_t count;
    uint64_t looks;
    struct waitq room;
};

void compress_init(struct compress *c);
void compress_free(struct compress *c);

// Returns 0 and the cluster's bytes (until the op returns to the run queue), OP_PARKED (plan
// again), or a negative errno: -EIO where the data is broken.
int compress_get(struct op *op, const struct mapping *m, const unsigned char **bytes);

#endif
