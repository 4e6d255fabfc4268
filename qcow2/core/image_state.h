// SPDX-License-Identifier: Apache-2.0
// image_state.h: the state of one image that is served. Modules that work on the whole image have
// their state behind a pointer, so that only a file that includes a module's header can touch it.
#ifndef LAZYCOW_QCOW2_CORE_IMAGE_STATE_H
#define LAZYCOW_QCOW2_CORE_IMAGE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/grace.h"
#include "qcow2/base/inflight.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/dirty_bit.h"
#include "qcow2/core/host.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/format/entry.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/header.h"
#include "qcow2/format/l1.h"
#include "qcow2/format/snapshot_table.h"

struct image {
    struct file *file; // owned
    struct runq *runq;
    struct image_host host;
    struct image_options options;
    enum image_format format;
    uint64_t size; // guest bytes
    bool read_only;
    // Writes and flushes end with this error: a barrier failed, or the image is corrupt.
    int latched_error;

    struct image *backing; // owned; NULL: none

    // The machine for each kind of op.
    const struct op_machine *const *machines;
    struct grace grace; // of host clusters
    // Ops that are started and not done, without internal ones, the newest first.
    LIST_HEAD(, op) running;
    size_t op_count;     // of running
    size_t bounce_bytes; // held by copies on write
    struct waitq bounce_room;
    SLIST_HEAD(, op_work) spare_work;
    size_t spare_work_count;

    // The members below belong to qcow2 images only.
    struct header header;
    struct geometry geometry;
    struct entry_context entry_context;
    bool lazy; // refcounts are written at clean points only
    enum dirty_bit dirty_bit;
    bool has_bitmaps; // the header has the bitmaps extension
    // A sync is to clear autoclear bits and remove bitmaps. Set by the first change.
    bool drop_autoclear;
    struct snapshot_table snapshots;
    struct l1 l1;
    // Number of L2 entries that changed since the image was opened.
    uint64_t mapping_changes;
    LIST_HEAD(, table_copy) table_copies;
    struct inflight inflight;
    struct sync_queue syncs;

    // Owned. The pointers below point into it; all are NULL for raw images.
    struct image_parts *parts;
    struct cache *cache;
    struct inflated_cache *inflated;
    struct chain *chain;
    struct refcounts *refcounts;
    struct alloc *alloc;
    struct quarantine *quarantine;
    struct punch *punch;
    struct guard *guard;
    struct sync *sync;
    struct corrupt *corrupt;
    struct recovery *recovery;
};

#endif
