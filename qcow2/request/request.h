// SPDX-License-Identifier: Apache-2.0
// request.h: a client's request from start to done, and what it holds while it changes the image.
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

// Starts the op. An invalid one (range, read-only image) is answered through done like any other
// error.
void op_start(struct image *image, struct op *op);

// ---- For step functions

// What an op holds while it does more than read or write in place. Released by op_finish.
struct op_work {
    SLIST_ENTRY(op_work) spare_link;
    struct inflight_range range; // locked guest clusters
    struct alloc_run run;        // clusters taken and not linked yet; count 0: none
    uint64_t target;             // first host cluster that is written: of run, or one that is there
    bool needs_barrier;          // the data must be durable before the L2 entries are
    // The guest bytes before and behind the payload have to be read first.
    bool copy_head;
    bool copy_tail;
    size_t head_length;    // bytes of bounce before the payload
    size_t tail_length;    // and behind it
    unsigned char *bounce; // malloc
    size_t bounce_bytes;   // of bounce, those that count in the image's bounce_bytes
    struct iovec iov[3];
    struct op child;      // a read for copy on write, zeros that are written, or a block status
    struct extent extent; // of that status
    struct op *parent;
};

// Spare work structs kept for reuse: as many as there usually are requests at once.
#define OP_SPARE_WORK_MAX 64
// Bytes that copies on write may hold before others wait to begin theirs: some of the largest
// clusters. A copy takes less than two clusters beyond its client's own data.
#define OP_BOUNCE_BYTES_MAX (64u << 20)

// Ends the op: releases what it holds, and calls its owner back from the run queue.
void op_finish(struct op *op, int result);

// op->work, made if there is none. Returns 0 or -ENOMEM.
int op_need_work(struct op *op);
// Before a copy on write takes anything: waits while others hold OP_BOUNCE_BYTES_MAX. Returns 0 or
// OP_PARKED (plan again).
int op_bounce_wait(struct op *op);
// Memory for the copy, zeros, at work->bounce. Returns 0 or -ENOMEM.
int op_bounce(struct op *op, size_t bytes);
void op_bounce_free(struct op *op);
// Starts work->child on an image, with what is set of child (kind, flags, range, buf, extents); its
// end is the parent's next turn.
void op_start_child(struct op *op, struct image *image, const struct op *child);

#endif
