// SPDX-License-Identifier: Apache-2.0
#include "qcow2/space/punch.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/image_state.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/refcount.h"

enum { PUNCH_NEXT, PUNCH_DONE };

static const char *const state_names[] = {
    [PUNCH_NEXT] = "next",
    [PUNCH_DONE] = "done",
};

static const struct op_machine punch_machine;

void punch_init(struct punch *punch, struct image *image)
{
    punch->enabled = image->options.unmap;
    STAILQ_INIT(&punch->young);
    STAILQ_INIT(&punch->ripe);
    STAILQ_INIT(&punch->due);
    waitq_init(&punch->idle, "holes to be punched");
    op_init(&punch->op, image, image->runq, &punch_machine);
}

static void drop_first(struct punch *punch, struct punch_list *list)
{
    struct punch_extent *extent = STAILQ_FIRST(list);

    STAILQ_REMOVE_HEAD(list, link);
    free(extent);
    punch->count--;
}

void punch_free(struct punch *punch)
{
    STAILQ_CONCAT(&punch->due, &punch->ripe);
    STAILQ_CONCAT(&punch->due, &punch->young);
    while (!STAILQ_EMPTY(&punch->due))
        drop_first(punch, &punch->due);
}

bool punch_idle(const struct punch *punch)
{
    return punch->count == 0 && !punch->running;
}

void punch_add(struct image *image, uint64_t first, uint64_t count)
{
    struct punch *punch = image->punch;

    if (!punch->enabled)
        return;
    if (punch->last && punch->last->first + punch->last->count == first) {
        punch->last->count += count;
        return;
    }
    struct punch_extent *extent = punch->count < PUNCH_EXTENTS_MAX ? malloc(sizeof(*extent)) : NULL;
    if (!extent)
        return;
    *extent = (struct punch_extent){.first = first, .count = count};
    STAILQ_INSERT_TAIL(&punch->young, extent, link);
    punch->last = extent;
    punch->count++;
}

static void punch_start(struct punch *punch)
{
    if (punch->running || STAILQ_EMPTY(&punch->due))
        return;
    punch->running = true;
    punch->op.state = PUNCH_NEXT;
    punch->op.wait.result = 0;
    op_post(&punch->op);
}

void punch_age(struct image *image)
{
    struct punch *punch = image->punch;

    STAILQ_CONCAT(&punch->due, &punch->ripe);
    STAILQ_CONCAT(&punch->ripe, &punch->young);
    punch->last = NULL;
    punch_start(punch);
}

void punch_all(struct image *image)
{
    punch_age(image);
    punch_age(image);
}

static void skip(struct punch *punch, uint64_t clusters)
{
    struct punch_extent *extent = STAILQ_FIRST(&punch->due);

    extent->first += clusters;
    extent->count -= clusters;
    if (extent->count == 0)
        drop_first(punch, &punch->due);
}

// Marks the clusters as taken while their hole is being punched.
static void set_taken(struct image *image, uint64_t first, uint64_t count, bool taken)
{
    for (uint64_t i = 0; i < count; i++)
        refcounts_set(image->refcounts, first + i, taken);
}

// Finds clusters of the first extent that are still free, and punches them. Returns OP_PARKED, or 0
// when the next extent can be looked at.
static int punch_front(struct op *op)
{
    struct image *image = op->image;
    struct punch *punch = image->punch;
    struct refcounts *rc = image->refcounts;
    unsigned bits = image->geometry.cluster_bits;
    const struct punch_extent *extent = STAILQ_FIRST(&punch->due);
    uint64_t page_end = (refcounts_page_index(rc, extent->first) + 1) << rc->geometry.block_bits;
    uint64_t end = extent->first + extent->count;
    uint64_t first, next;

    if (end > page_end)
        end = page_end;
    if (refcounts_find_free(rc, extent->first, end, 1, &first, &next) == 0) {
        skip(punch, next - extent->first);
        return 0;
    }
    if (first > extent->first)
        skip(punch, first - extent->first);
    punch->run = 1;
    while (punch->run < PUNCH_BYTES_MAX >> bits && punch->run < PUNCH_CLUSTERS_MAX &&
           first + punch->run < end && refcounts_get(rc, first + punch->run) == 0)
        punch->run++;
    set_taken(image, first, punch->run, true);
    op->state = PUNCH_DONE;
    op_submit(op, image->file, FILE_PUNCH, first << bits, punch->run << bits, NULL, 0);
    return OP_PARKED;
}

static void punch_step(struct op *op)
{
    struct image *image = op->image;
    struct punch *punch = image->punch;

    if (op->state == PUNCH_DONE) {
        set_taken(image, STAILQ_FIRST(&punch->due)->first, punch->run, false);
        alloc_freed(image->alloc);
        skip(punch, punch->run);
        // Extents that are remembered are dropped as they become due.
        if (op->wait.result == -EOPNOTSUPP)
            punch->enabled = false;
        op->state = PUNCH_NEXT;
    }
    for (unsigned n = 0; !STAILQ_EMPTY(&punch->due); n++) {
        if (n == PUNCH_EXTENTS_A_TURN) {
            op_post(op);
            return;
        }
        if (!punch->enabled)
            drop_first(punch, &punch->due);
        else if (punch_front(op) == OP_PARKED)
            return;
    }
    punch->running = false;
    // Extents that became free later are not waited for: perhaps nobody makes them due.
    waitq_wake(&punch->idle, punch_idle(punch) ? 0 : -EBUSY);
}

static const struct op_machine punch_machine = OP_MACHINE("punching", punch_step, state_names);
