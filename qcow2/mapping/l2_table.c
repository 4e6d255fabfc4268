// SPDX-License-Identifier: Apache-2.0
#include "qcow2/mapping/l2_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/container.h"
#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/format/format.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/l1.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/reclaim.h"

// A table that is being copied (or zeroed, where fresh space does not read as zeros). Ops that need
// it wait.
struct table_copy {
    struct op op; // internal; runs the copy
    uint64_t l1_index;
    uint64_t old_offset; // 0: there is none
    uint64_t new_cluster;
    unsigned char *bytes; // one cluster
    struct iovec iov;
    struct waitq waiters;
    LIST_ENTRY(table_copy) link;
};

static void link_table(struct image *image, uint64_t l1_index, uint64_t cluster)
{
    l1_set(&image->l1, l1_index, cluster << image->geometry.cluster_bits | FORMAT_COPIED);
}

static void end_copy(struct table_copy *copy, int result)
{
    LIST_REMOVE(copy, link);
    waitq_wake(&copy->waiters, result);
    free(copy->bytes);
    free(copy);
}

enum { COPY_READ, COPY_WRITE, COPY_LINK };

static const char *const state_names[] = {
    [COPY_READ] = "read",
    [COPY_WRITE] = "write",
    [COPY_LINK] = "link",
};

// Reads the old table, writes the new one, and links it behind a barrier.
static void copy_step(struct op *op)
{
    struct table_copy *copy = container_of(op, struct table_copy, op);
    struct image *image = op->image;
    unsigned bits = image->geometry.cluster_bits;
    uint64_t bytes = image->geometry.cluster_size;

    if (op->wait.result < 0) {
        guard_remove(image, copy->new_cluster << bits);
        quarantine_add(image, copy->new_cluster, 1);
        end_copy(copy, op->wait.result);
        return;
    }
    switch (op->state) {
    case COPY_READ:
        op->state = COPY_WRITE;
        op_submit(op, image->file, FILE_READ, copy->old_offset, bytes, &copy->iov, 1);
        return;
    case COPY_WRITE:
        op->state = COPY_LINK;
        op_submit(op, image->file, FILE_WRITE, copy->new_cluster << bits, bytes, &copy->iov, 1);
        return;
    default:
        // The old table stays guarded, because the snapshot still has it.
        sync_need_barrier(image);
        link_table(image, copy->l1_index, copy->new_cluster);
        if (copy->old_offset)
            quarantine_add(image, copy->old_offset >> bits, 1);
        end_copy(copy, 0);
        return;
    }
}

static const struct op_machine copy_machine =
    OP_MACHINE("copy of an L2 table", copy_step, state_names);

static int l2_table_start_copy(struct op *op, uint64_t l1_index, uint64_t old_offset,
                               uint64_t cluster)
{
    struct image *image = op->image;
    struct table_copy *copy = calloc(1, sizeof(*copy));

    if (!copy)
        return -ENOMEM;
    if (posix_memalign((void **)&copy->bytes, 4096, image->geometry.cluster_size) != 0) {
        free(copy);
        return -ENOMEM;
    }
    memset(copy->bytes, 0, image->geometry.cluster_size);
    copy->l1_index = l1_index;
    copy->old_offset = old_offset;
    copy->new_cluster = cluster;
    copy->iov = (struct iovec){.iov_base = copy->bytes, .iov_len = image->geometry.cluster_size};
    waitq_init(&copy->waiters, "an L2 table to be copied");
    LIST_INSERT_HEAD(&image->table_copies, copy, link);
    op_init(&copy->op, image, image->runq, &copy_machine);
    copy->op.state = old_offset ? COPY_READ : COPY_WRITE;
    op_post(&copy->op);
    return op_park(op, &copy->waiters);
}

int l2_table_own(struct op *op, uint64_t l1_index)
{
    struct image *image = op->image;
    uint64_t old_offset = image->l1.entries[l1_index] & FORMAT_L1_OFFSET_MASK;
    struct table_copy *copy;

    LIST_FOREACH (copy, &image->table_copies, link) {
        if (copy->l1_index == l1_index)
            return op_park(op, &copy->waiters);
    }
    if (geometry_in_cluster(&image->geometry, old_offset) != 0)
        return -EIO;

    struct alloc_run run;
    // On a device fresh space does not read as zeros, so any free cluster will do.
    int result = alloc_clusters(op, 1, image->file->fresh_is_zero, &run);
    if (result == -ENOSPC)
        result = reclaim_wait(op);
    if (result != 0)
        return result;
    if (guard_refuses(image, run.first << image->geometry.cluster_bits,
                      image->geometry.cluster_size))
        return -EIO;
    result = guard_add(image, run.first << image->geometry.cluster_bits);
    if (result == 0 && (old_offset || !run.zero))
        result = l2_table_start_copy(op, l1_index, old_offset, run.first);
    else if (result == 0)
        link_table(image, l1_index, run.first);
    if (result < 0) {
        guard_remove(image, run.first << image->geometry.cluster_bits);
        quarantine_add(image, run.first, 1);
    }
    return result;
}
