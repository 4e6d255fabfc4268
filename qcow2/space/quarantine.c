// SPDX-License-Identifier: Apache-2.0
#include "qcow2/space/quarantine.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "qcow2/base/grace.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/refcount.h"

static const struct op_machine release_machine;

void quarantine_init(struct quarantine *q, struct image *image)
{
    TAILQ_INIT(&q->pending);
    TAILQ_INIT(&q->syncing);
    TAILQ_INIT(&q->durable);
    waitq_init(&q->empty, "the quarantine to empty");
    waitq_init(&q->room, "room in the quarantine");
    waitq_init(&q->released, "clusters to be released");
    op_init(&q->releaser, image, image->runq, &release_machine);
}

static void free_list(struct quarantine_list *list)
{
    struct quarantined *extent;

    while ((extent = TAILQ_FIRST(list)) != NULL) {
        TAILQ_REMOVE(list, extent, link);
        free(extent);
    }
}

void quarantine_free(struct quarantine *q)
{
    free_list(&q->pending);
    free_list(&q->syncing);
    free_list(&q->durable);
}

bool quarantine_full(const struct quarantine *q)
{
    return q->count >= QUARANTINE_MAX;
}

bool quarantine_empty(const struct quarantine *q)
{
    return q->count == 0;
}

int quarantine_wait_release(struct op *op)
{
    struct quarantine *q = op->image->quarantine;

    return q->releaser_state == RELEASER_RUNNING ? op_park(op, &q->released) : 0;
}

void quarantine_add(struct image *image, uint64_t first, uint64_t count)
{
    struct quarantine *q = image->quarantine;
    struct quarantined *last = TAILQ_LAST(&q->pending, quarantine_list);

    // The header's cluster is never given up.
    assert(first > 0 && count > 0);
    // Clusters of the fresh space were handed out to nobody: a damaged entry named them. They may
    // be handed out before the release, which would take them from their new owner.
    if (first >= image->alloc->fresh)
        return;
    if (count > image->alloc->fresh - first)
        count = image->alloc->fresh - first;

    // A waiter for an empty quarantine has found the image idle. It no longer is, and perhaps
    // nobody requests the sync that would release this reference.
    waitq_wake(&q->empty, -EBUSY);
    if (last && last->first + last->count == first) {
        last->count += count;
        last->stamp = grace_stamp(&image->grace);
        return;
    }
    struct quarantined *extent = malloc(sizeof(*extent));
    if (!extent) {
        image_log(image, "out of memory: %llu freed clusters leak until the next check",
                  (unsigned long long)count);
        return;
    }
    *extent =
        (struct quarantined){.first = first, .count = count, .stamp = grace_stamp(&image->grace)};
    TAILQ_INSERT_TAIL(&q->pending, extent, link);
    q->count++;
}

void quarantine_sync_begins(struct image *image)
{
    TAILQ_CONCAT(&image->quarantine->syncing, &image->quarantine->pending, link);
}

void quarantine_sync_ended(struct image *image, bool failed)
{
    struct quarantine *q = image->quarantine;

    if (failed) {
        TAILQ_CONCAT(&q->syncing, &q->pending, link);
        TAILQ_CONCAT(&q->pending, &q->syncing, link);
    } else {
        TAILQ_CONCAT(&q->durable, &q->syncing, link);
        punch_age(image);
        quarantine_kick(image);
    }
}

bool quarantine_held(const struct image *image)
{
    const struct quarantined *extent = TAILQ_FIRST(&image->quarantine->durable);

    return extent && grace_held(&image->grace, extent->stamp);
}

void quarantine_kick(struct image *image)
{
    struct quarantine *q = image->quarantine;

    if (q->releaser_state != RELEASER_IDLE || TAILQ_EMPTY(&q->durable))
        return;
    q->releaser_state = RELEASER_RUNNING;
    q->releaser.wait.result = 0;
    op_post(&q->releaser);
}

static void drop_front(struct quarantine *q, struct quarantined *extent, uint64_t count)
{
    extent->first += count;
    extent->count -= count;
    if (extent->count > 0)
        return;
    TAILQ_REMOVE(&q->durable, extent, link);
    free(extent);
    q->count--;
    waitq_wake(&q->room, 0);
    if (q->count == 0)
        waitq_wake(&q->empty, 0);
}

static void leak(struct image *image, struct quarantined *extent, int error)
{
    image_log(image, "%llu freed clusters leak until the next check: error %d",
              (unsigned long long)extent->count, -error);
    drop_front(image->quarantine, extent, extent->count);
}

// Lowers the refcounts of the first run clusters of the extent, all in one page.
static void lower(struct image *image, const struct quarantined *extent, uint64_t run)
{
    uint64_t first = extent->first;

    // No plan and no holder points there: the next owner may write.
    assert(grace_over(&image->grace, extent->stamp));
    for (uint64_t i = 0; i < run; i++) {
        uint64_t count = refcounts_get(image->refcounts, first + i);

        // A refcount of 0 under a reference: the image is inconsistent, there is nothing to lower.
        if (count > 0)
            refcounts_set(image->refcounts, first + i, count - 1);
        // With damaged entries (no reuse) the last known reference may not be the last one.
        if (count == 1 && image->alloc->reuse)
            punch_add(image, first + i, 1);
    }
    alloc_freed(image->alloc);
}

// Releases at most *budget clusters of the first extent and subtracts them from *budget. Returns 0,
// or OP_PARKED when the releaser's next turn comes by itself.
static int release_front(struct op *op, struct quarantined *extent, uint64_t *budget)
{
    struct image *image = op->image;
    const struct refcounts *rc = image->refcounts;

    // Clusters beyond the fresh boundary were never counted: a damaged entry named them.
    if (extent->first >= image->alloc->fresh) {
        *budget -= 1;
        drop_front(image->quarantine, extent, extent->count);
        return 0;
    }
    int result = refcounts_load(op, extent->first);
    if (result == OP_PARKED)
        return OP_PARKED;
    if (result < 0) {
        *budget -= 1;
        leak(image, extent, result);
        return 0;
    }
    uint64_t page_end = (refcounts_page_index(rc, extent->first) + 1) << rc->geometry.block_bits;
    uint64_t run =
        page_end - extent->first < extent->count ? page_end - extent->first : extent->count;
    if (run > *budget)
        run = *budget;
    *budget -= run;
    lower(image, extent, run);
    drop_front(image->quarantine, extent, run);
    return 0;
}

// Waits for the extent's grace period. Returns 0 or OP_PARKED.
static int wait_for_grace(struct op *op, const struct quarantined *extent)
{
    struct image *image = op->image;

    image->quarantine->releaser_state = RELEASER_WAITING;
    if (grace_wait(op, &image->grace, extent->stamp) == OP_PARKED)
        return OP_PARKED;
    image->quarantine->releaser_state = RELEASER_RUNNING;
    return 0;
}

static void release_step(struct op *op)
{
    struct quarantine *q = op->image->quarantine;
    uint64_t budget = QUARANTINE_RELEASE_A_TURN;
    struct quarantined *extent;

    // No wait of the releaser ends with an error: refcounts_load() reports a page that cannot be
    // read.
    assert(op->wait.result == 0);
    waitq_wake(&q->released, 0);
    while ((extent = TAILQ_FIRST(&q->durable)) != NULL) {
        if (budget == 0) {
            assert(q->releaser_state == RELEASER_RUNNING);
            op_post(op);
            return;
        }
        if (wait_for_grace(op, extent) == OP_PARKED ||
            release_front(op, extent, &budget) == OP_PARKED)
            return;
    }
    q->releaser_state = RELEASER_IDLE;
}

static const char *const state_names[] = {"running"};

static const struct op_machine release_machine = OP_MACHINE("release", release_step, state_names);
