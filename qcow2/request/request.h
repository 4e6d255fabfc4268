// SPDX-License-Identifier: Apache-2.0
// request.h: a client's request from start to done, and the resources that it holds while it
// changes the image.
#ifndef LAZYCOW_QCOW2_REQUEST_REQUEST_H
#define LAZYCOW_QCOW2_REQUEST_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

#include "qcow2/base/op.h"
#include "qcow2/base/inflight.h"
#include "qcow2/space/alloc.h"

struct image;

// Starts the op. An invalid op (bad range, write to a read-only image) ends through done with an
// error.
void op_start(struct image *image, struct op *op);

// ---- For step functions

// Resources of an op that does more than read or write in place. op_finish releases them.
struct op_work {
    SLIST_ENTRY(op_work) spare_link;
    struct inflight_range range; // locked guest clusters
    // Clusters that are taken and not linked yet; count 0: none.
    struct alloc_run run;
    // First host cluster that is written: one of run, or one that the guest cluster has.
    uint64_t target;
    bool needs_barrier; // the data must be durable before the L2 entries
    // The guest bytes before and behind the payload are read and copied.
    bool copy_head;
    bool copy_tail;
    size_t head_length;    // bytes of bounce before the payload
    size_t tail_length;    // bytes of bounce behind the payload
    unsigned char *bounce; // malloc
    // Bytes of bounce that count in the image's bounce_bytes.
    size_t bounce_bytes;
    struct iovec iov[3];
    // A read for copy on write, a write of zeros, or a block status.
    struct op child;
    struct extent extent; // answer of a block status by child
    struct op *parent;
};

// Most work structs that are kept for reuse: the usual number of requests in flight.
#define OP_SPARE_WORK_MAX 64
// Most bytes that copies on write may hold before others wait to begin theirs: some of the largest
// clusters. A copy takes less than two clusters beyond its client's own data.
#define OP_BOUNCE_BYTES_MAX (64u << 20)

// Ends the op: releases its resources, and posts its done to the run queue.
void op_finish(struct op *op, int result);

// Allocates op->work if there is none. Returns 0 or -ENOMEM.
int op_need_work(struct op *op);
// Called before a copy on write takes anything: waits while others hold OP_BOUNCE_BYTES_MAX.
// Returns 0 or OP_PARKED (plan again).
int op_bounce_wait(struct op *op);
// Allocates bytes zeros for a copy at work->bounce. Returns 0 or -ENOMEM.
int op_bounce(struct op *op, size_t bytes);
void op_bounce_free(struct op *op);
// Starts work->child on an image with the members of child that are set (kind, flags, range, buf,
// extents). Its end is the parent's next turn.
void op_start_child(struct op *op, struct image *image, const struct op *child);

#endif
