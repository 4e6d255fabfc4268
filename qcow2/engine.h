// SPDX-License-Identifier: Apache-2.0
// engine.h: the state of one image that is being served, and what its modules use to run ops. Each
// module's own state is a struct of its own header; this one puts them together.
#ifndef LAZYCOW_QCOW2_ENGINE_H
#define LAZYCOW_QCOW2_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/space/alloc.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/mapping/chain.h"
#include "qcow2/request/inflated_cache.h"
#include "qcow2/durable/corrupt.h"
#include "qcow2/format/entry.h"
#include "qcow2/format/format.h"
#include "qcow2/format/geometry.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/format/header.h"
#include "qcow2/image.h"
#include "qcow2/mapping/inflight.h"
#include "qcow2/mapping/l1.h"
#include "qcow2/space/lease.h"
#include "qcow2/base/op.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/durable/recover.h"
#include "qcow2/space/refcount.h"
#include "qcow2/format/snapshot_table.h"
#include "qcow2/durable/sync.h"
#include "qcow2/base/waitq.h"

struct image {
    struct file *file; // owned
    struct runq *runq;
    struct image_host host;
    struct image_options options;
    enum image_format format;
    uint64_t size; // guest bytes
    bool read_only;
    bool lazy;         // refcounts wait for a clean shutdown
    int latched_error; // a barrier failed or the image is corrupt: writes and flushes end with it

    struct image *backing;       // owned; NULL: none
    const struct image *overlay; // what it stands behind; NULL: it is served itself

    // Ops that may use host clusters, in the order in which their plans were made; see
    // quarantine.h.
    TAILQ_HEAD(, op) active;
    TAILQ_HEAD(lease_list, op) leases; // ops that have something lent, in that order, too (lease.h)
    struct waitq lease_ended;          // ops that wait for the first of them to give back
    uint64_t next_begun;
    uint64_t mapping_changes; // how often an L2 entry changed
    struct waitq older_gone;  // ops that wait for those before them to end
    size_t op_count;          // started and not done, internal ones not counted
    size_t bounce_bytes;      // what copies on write hold
    struct waitq bounce_room;
    SLIST_HEAD(, op_work) spare_work;
    size_t spare_work_count;

    // Below: qcow2 only.
    struct header header;
    struct geometry geometry;
    struct entry_context entry_context;
    struct snapshot_table snapshots;
    struct l1 l1;
    LIST_HEAD(, table_copy) table_copies;
    struct cache cache;
    struct refcounts refcounts;
    struct alloc alloc;
    struct quarantine quarantine;
    struct punch punch;
    struct inflight inflight;
    struct guard guard;
    struct sync sync;
    struct corrupt corrupt;
    struct recovery recovery;
    struct inflated_cache inflated;
    struct chain chain;
};

// ---- Ops (op.c)

// What an op holds while it does more than read or write in place. Released by op_finish.
struct op_work {
    SLIST_ENTRY(op_work) spare_link;
    struct inflight_range range; // locked guest clusters
    struct alloc_run run;        // clusters taken and not linked yet; count 0: none
    uint64_t target;             // first host cluster that is written: of run, or one that is there
    bool needs_barrier;          // the data must be durable before the L2 entries are
    bool copy_head; // the guest bytes before and behind the payload have to be read first
    bool copy_tail;
    size_t head_length;    // bytes of bounce before the payload
    size_t tail_length;    // and behind it
    unsigned char *bounce; // malloc
    size_t bounce_bytes;   // what of it counts in the image's bounce_bytes
    struct iovec iov[3];
    struct op child;      // a read for copy on write, zeros that are written, or a block status
    struct extent extent; // of that status
    struct op *parent;
};

// Spare work structs kept for reuse: as many as there usually are requests at once.
#define OP_SPARE_WORK_MAX 64
// What copies on write may hold before others wait to begin theirs: some of the largest clusters. A
// copy takes less than two clusters beyond its client's own data.
#define OP_BOUNCE_BYTES_MAX (64u << 20)

// Posts the op for its next turn.
void op_post(struct op *op);
// Starts an internal op (sync, release, recovery): it is not counted, never done; step runs on
// post.
void op_init_internal(struct op *op, struct image *image, void (*step)(struct op *op));
// Ends the op: releases what it holds, and calls its owner back from the run queue.
void op_finish(struct op *op, int result);
// A new plan is about to be made: the op holds no host offset from before.
void op_replan(struct op *op);
// The op waits for something else than its own I/O, and holds no host offset meanwhile.
void op_leave_active(struct op *op);
// Waits until every op has ended, or made a new plan, that made its plan before this one did.
// Returns 0 or OP_PARKED (ask again).
int op_wait_for_older(struct op *op);
// op->work, made if there is none. Returns 0 or -ENOMEM.
int op_need_work(struct op *op);
// Before a copy on write takes anything: waits while others hold OP_BOUNCE_BYTES_MAX. Returns 0 or
// OP_PARKED (plan again).
int op_bounce_wait(struct op *op);
// Memory for the copy, zeros, at work->bounce. Returns 0 or -ENOMEM.
int op_bounce(struct op *op, size_t bytes);
void op_bounce_free(struct op *op);
// Submits op->io or another io whose end is the op's next turn, with wait_result telling how it
// ended.
void op_submit(struct op *op, enum file_io_kind kind, uint64_t offset, uint64_t length,
               const struct iovec *iov, int iovcnt);
// As op_submit on a given file.
void op_submit_to(struct op *op, struct file *file, enum file_io_kind kind, uint64_t offset,
                  uint64_t length, const struct iovec *iov, int iovcnt);
// Starts work->child on an image, with what is set of op (kind, flags, range, buf, extents); its
// end is the parent's next turn.
void op_start_child(struct op *op, struct image *image, const struct op *child);

// The step functions.
void read_step(struct op *op);
void write_step(struct op *op);
void zero_step(struct op *op);
void flush_step(struct op *op);
void status_step(struct op *op);

// ---- Saying things

__attribute__((format(printf, 2, 3))) void image_log(struct image *image, const char *format, ...);

#endif
