// SPDX-License-Identifier: Apache-2.0
//
// A disk keeps through a power cut all data that was written before the last completed barrier
// (FILE_DATASYNC), and any part of the data that was written after it. Hence:
//
//  1. Durable means durable. A waiter of a sync is woken after a barrier that was submitted after
//     the end of every write that it waits for, and after the end of the table writes that make
//     them reachable.
//  2. Old or new, never a third value. An L2 entry is written before its data is durable only where
//     the cluster reads as zeros until then, and zeros are what the guest had there. In every other
//     case the op calls sync_need_barrier() when the entry changes in memory, and the sync puts a
//     barrier between the data and the entry.
//  3. The mapping is self-sufficient. A new L2 table lies in fresh space: an L1 entry that is
//     durable before the table maps nothing, which is what the guest had. A table that is copied is
//     durable before its L1 entry, by a barrier.
//  4. It always opens. The dirty bit is durable before any entry that the refcounts on disk do not
//     cover. Without lazy refcounts the refcounts themselves are durable before the entry.
//  5. A cluster that lost its last reference is not used again before the unlinking is durable:
//     quarantine.c gives it back only after the sync that wrote the entry.
//  6. One sync runs at a time. All requests that come meanwhile share the next one (group commit).
//
// Tables are copied when a sync begins, so a later change belongs to the next sync.
//
//   IDLE ── sync_request ──> BEGIN            copy dirty L2 and L1 pieces; quarantine moves along
//        ──> HEADER          rule 4: dirty bit on, autoclear bits off
//        ──> REFCOUNTS       only without lazy refcounts; where they have no room, the dirty bit
//        ──> PREPARED        rules 2, 3, 4: the first barrier, if anything needs it
//        ──> TABLES          write the copies
//        ──> WRITTEN         the barrier of rule 1
//        ──> DURABLE         wake the waiters, release the quarantine
//        ──> CLEAN_…         at shutdown and when idle: refcounts, barrier, dirty bit off, barrier
//
// The first change of an image with bitmaps gives them up: HEADER sets the dirty bit and clears the
// autoclear bits, TABLES takes the extension out of the header, and from DURABLE on clusters are
// counted anew, without those of bitmaps. Nothing else is changed before that.
//
// A failure in BEGIN to WRITTEN continues at DURABLE, which undoes the stage and tells the waiters.
// A failure in CLEAN ends the clean point, and the dirty bit counts as set.
//
// After a failed barrier the state on disk is unknown: the error is latched, writes and flushes end
// with EIO from then on, and the dirty bit stays. A table write without space loses nothing: the
// copies that were not written are dirty again, and the waiters get ENOSPC.
#include "qcow2/durable/sync.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/dirty_bit.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/header_write.h"
#include "qcow2/durable/recover.h"
#include "qcow2/durable/refcount_write.h"
#include "qcow2/durable/sync_check.h"
#include "qcow2/durable/sync_state.h"
#include "qcow2/durable/tables_write.h"
#include "qcow2/durable/writeback.h"
#include "qcow2/format/header.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"

static const struct op_machine sync_machine;

void sync_init(struct image *image)
{
    struct sync *sync = image->sync;

    op_init(&sync->op, image, image->runq, &sync_machine);
    sync->op.state = SYNC_BEGIN;
    sync_queue_init(&image->syncs, &sync->op);
    waitq_init(&sync->current, "a sync");
    waitq_init(&sync->cleaning, "a clean point");
    image->dirty_bit =
        image->header.incompatible & HEADER_INCOMPATIBLE_DIRTY ? DIRTY_BIT_SET : DIRTY_BIT_CLEAR;
}

void sync_free(struct sync *sync)
{
    writeback_free(&sync->writeback);
    refcount_write_free(&sync->refcounts);
}

// Without lazy refcounts the dirty bit is set only after a crash. Until it is cleared the refcounts
// on disk are not used, and so need not be kept right.
static bool lazy_now(const struct image *image)
{
    return image->lazy || dirty_bit_on(image->dirty_bit);
}

bool sync_needed(const struct image *image)
{
    return image->syncs.demand.data || image->cache->dirty_count > 0 || image->l1.dirty_count > 0 ||
           image->drop_autoclear || !TAILQ_EMPTY(&image->quarantine->pending);
}

int sync_flush(struct op *op)
{
    struct sync *sync = op->image->sync;

    if (sync_needed(op->image) || op->image->syncs.state == SYNC_QUEUE_DUE)
        return sync_wait(op);
    if (sync->op.state != SYNC_BEGIN && sync->op.state <= SYNC_DURABLE)
        return op_park(op, &sync->current);
    // The answered writes have changed nothing.
    op->image->syncs.demand.bytes = 0;
    return 0;
}

uint64_t sync_bytes_at_stake(const struct image *image)
{
    return image->syncs.demand.bytes + image->sync->demand.bytes;
}

int sync_drop_autoclear(struct op *op)
{
    struct image *image = op->image;

    // Giving bitmaps up starts a count of all clusters, and only one count runs at a time.
    if (image->has_bitmaps && image->recovery->running)
        return recover_wait(op);
    if (image->header.autoclear == 0 && !image->drop_autoclear && !image->has_bitmaps)
        return 0;
    image->drop_autoclear = true;
    return sync_wait(op);
}

int sync_clean(struct op *op)
{
    op->image->sync->clean_wanted = true;
    sync_request(op->image);
    return op_park(op, &op->image->sync->cleaning);
}

// ---- BEGIN

static enum sync_state sync_begin(struct image *image)
{
    struct sync *sync = image->sync;

    sync->demand = sync_queue_begin(&image->syncs, &sync->current);
    sync_facts_begin(&sync->facts, sync->demand);
    sync->drops = SYNC_DROPS_NOTHING;
    if (image->drop_autoclear)
        sync->drops = image->has_bitmaps ? SYNC_DROPS_BITMAPS : SYNC_DROPS_AUTOCLEAR;
    quarantine_sync_begins(image);
    writeback_clear(&sync->writeback);

    // After a failed barrier a later one proves nothing about the writes before it.
    int result = image->latched_error;
    if (result == 0)
        result = tables_copy(image, &sync->writeback);
    if (result < 0) {
        sync->op.wait.result = result;
        return SYNC_DURABLE;
    }
    // Nothing changes before the bitmaps are gone, because clusters are counted anew after that.
    assert(sync->drops != SYNC_DROPS_BITMAPS || sync->writeback.count == 0);
    bool needs_dirty =
        sync->drops == SYNC_DROPS_BITMAPS || (lazy_now(image) && sync->writeback.count > 0);
    if (needs_dirty && image->dirty_bit != DIRTY_BIT_SET)
        image->dirty_bit = DIRTY_BIT_SETTING;
    return SYNC_HEADER;
}

// ---- HEADER

static enum sync_state submit_header(struct image *image, enum sync_state next)
{
    image->sync->op.state = next;
    image->sync->facts.exposed |= SYNC_WROTE_HEADER;
    header_write_bits(&image->sync->header, &image->sync->op);
    return SYNC_PARKED;
}

static enum sync_state submit_barrier(struct image *image, enum sync_state next)
{
    struct sync *sync = image->sync;

    sync->op.state = next;
    sync->barrier = true;
    op_submit(&sync->op, image->file, FILE_DATASYNC, 0, 0, NULL, 0);
    return SYNC_PARKED;
}

// Takes one turn of writing refcounts, in the stage that the sync is in. Returns 0 when all are
// written, a negative errno, or OP_PARKED.
static int refcounts_turn(struct image *image)
{
    struct sync *sync = image->sync;
    int result = refcount_write_turn(&sync->op, &sync->refcounts);

    sync->facts.exposed |= SYNC_WROTE_REFCOUNTS;
    if (result != REFCOUNT_WRITE_NEEDS_BARRIER)
        return result;
    submit_barrier(image, sync->op.state);
    return OP_PARKED;
}

static enum sync_state write_header(struct image *image)
{
    struct sync *sync = image->sync;

    if (image->dirty_bit != DIRTY_BIT_SETTING && sync->drops == SYNC_DROPS_NOTHING)
        return SYNC_REFCOUNTS;
    if (sync->drops != SYNC_DROPS_NOTHING)
        image->header.autoclear = 0;
    sync->demand.barrier = true;
    return submit_header(image, SYNC_REFCOUNTS);
}

// ---- REFCOUNTS to WRITTEN

// Returns true when refcounts are to be written, or their write is under way.
static bool refcounts_pending(const struct image *image)
{
    return image->sync->refcounts.state != REFCOUNT_WRITE_PLACE ||
           refcounts_dirty(image->refcounts);
}

// Returns true when the error left the old state intact, so that a later try may succeed.
static bool passes(int error)
{
    return error == -ENOSPC || error == -EDQUOT || error == -EFBIG || error == -ENOMEM;
}

// Called when the host has no room for refcounts. Tables have their space, and entries that waited
// for refcounts would be lost when the image is closed. So the dirty bit takes the place of the
// refcounts until the image is clean again.
static enum sync_state go_on_dirty(struct image *image, int error)
{
    struct sync *sync = image->sync;

    image_log(
        image,
        "refcounts cannot be written (%s): it is marked as not cleanly closed until they can; "
        "nothing is lost",
        strerror(-error));
    sync->op.wait.result = 0;
    image->dirty_bit = DIRTY_BIT_SETTING;
    return submit_header(image, SYNC_PREPARED);
}

static enum sync_state sync_write_refcounts(struct image *image)
{
    struct sync *sync = image->sync;

    if (lazy_now(image) || sync->writeback.count == 0 || !refcounts_pending(image))
        return sync->op.wait.result < 0 ? SYNC_DURABLE : SYNC_PREPARED;

    int result = refcounts_turn(image);
    if (result == OP_PARKED)
        return SYNC_PARKED;
    sync->demand.barrier = true;
    sync->op.wait.result = result;
    if (passes(result) && image->header.version >= 3)
        return go_on_dirty(image, result);
    return result < 0 ? SYNC_DURABLE : SYNC_PREPARED;
}

static enum sync_state first_barrier(struct image *image)
{
    if (!image->sync->demand.barrier)
        return SYNC_TABLES;
    return submit_barrier(image, SYNC_TABLES);
}

static enum sync_state sync_write_tables(struct image *image)
{
    struct sync *sync = image->sync;

    if (image->dirty_bit == DIRTY_BIT_SETTING)
        image->dirty_bit = DIRTY_BIT_SET;
    if (sync->drops == SYNC_DROPS_BITMAPS) {
        sync->op.state = SYNC_WRITTEN;
        sync->facts.exposed |= SYNC_WROTE_HEADER;
        header_write_no_bitmaps(&sync->header, &sync->op);
        return SYNC_PARKED;
    }
    if (sync->writeback.count == 0)
        // Without tables to write the first barrier has covered everything.
        return sync->demand.data && !sync->demand.barrier ? SYNC_WRITTEN : SYNC_DURABLE;
    sync->op.state = SYNC_WRITTEN;
    sync->facts.exposed |= SYNC_WROTE_TABLES;
    writeback_start(&sync->writeback, &sync->op, image->file);
    return SYNC_PARKED;
}

static enum sync_state last_barrier(struct image *image)
{
    return submit_barrier(image, SYNC_DURABLE);
}

// ---- DURABLE

static void latch(struct image *image, int error)
{
    if (image->latched_error < 0)
        return;
    image->latched_error = -EIO;
    image_log(image,
              "writing metadata or a barrier failed (%s): what is on disk is unknown, so writes "
              "are refused "
              "from now on; reads go on; restart when the disk is well",
              strerror(-error));
}

// Returns true when no op is in flight and all tables are on disk: the refcounts in memory then
// count exactly the references on disk.
static bool at_rest(const struct image *image)
{
    return image->sync->clean_final ||
           (image->op_count == 0 && image->cache->dirty_count == 0 && image->l1.dirty_count == 0);
}

static bool may_clean(const struct image *image)
{
    // An op waits for each copy of an L2 table.
    assert(!at_rest(image) || LIST_EMPTY(&image->table_copies));
    return at_rest(image) && quarantine_empty(image->quarantine) && recover_complete(image);
}

static enum sync_state sync_end(struct image *image, int clean_result)
{
    struct sync *sync = image->sync;

    if (clean_result < 0 && clean_result != -EBUSY && !passes(clean_result))
        latch(image, clean_result);
    sync->op.state = SYNC_BEGIN;
    waitq_wake(&sync->cleaning, clean_result);
    sync_queue_end(&image->syncs);
    return SYNC_PARKED;
}

// Ends the drops: after a success they are gone from the header, after an error the next sync tries
// again.
static void settle_drops(struct image *image, int result)
{
    struct sync *sync = image->sync;

    if (sync->drops == SYNC_DROPS_NOTHING)
        return;
    if (result == 0)
        image->drop_autoclear = false;
    if (sync->drops == SYNC_DROPS_BITMAPS) {
        if (result == 0)
            header_forget_bitmaps(image);
        recover_without_bitmaps(image, result);
    }
    sync->drops = SYNC_DROPS_NOTHING;
}

static enum sync_state durable(struct image *image)
{
    struct sync *sync = image->sync;
    int result = sync->op.wait.result;

    tables_settle(image, &sync->writeback, result < 0);
    if (result < 0) {
        sync_queue_put_back(&image->syncs, sync->demand);
        if (image->dirty_bit == DIRTY_BIT_SETTING)
            image->dirty_bit = DIRTY_BIT_UNSURE;
        if (!passes(result))
            latch(image, result);
    }
    sync->demand = (struct sync_demand){0};
    settle_drops(image, result);
    quarantine_sync_ended(image, result < 0);
    waitq_wake(&sync->current, result);
    waitq_wake(&image->cache->room, 0);
    waitq_wake(&image->cache->change_room, result);
    waitq_wake(&image->quarantine->room, result);
    if (!sync->clean_wanted)
        return sync_end(image, -EBUSY);
    sync->clean_wanted = false;
    if (result < 0)
        return sync_end(image, result);
    if (!may_clean(image))
        return sync_end(image, -EBUSY);
    return SYNC_CLEAN_REFCOUNTS;
}

// ---- CLEAN

static enum sync_state clean_refcounts(struct image *image)
{
    if (!refcounts_pending(image) && !dirty_bit_on(image->dirty_bit))
        return sync_end(image, 0);

    int result = refcounts_turn(image);
    if (result == OP_PARKED)
        return SYNC_PARKED;
    return result < 0 ? sync_end(image, result) : submit_barrier(image, SYNC_CLEAN_BARRIER);
}

static enum sync_state clean_header(struct image *image)
{
    struct sync *sync = image->sync;

    if (sync->op.wait.result < 0)
        return sync_end(image, sync->op.wait.result);
    if (!dirty_bit_on(image->dirty_bit))
        return sync_end(image, 0);
    // An op may have taken clusters while refcounts were written.
    if (!at_rest(image) || image->refcounts->table_moved)
        return sync_end(image, -EBUSY);
    image->dirty_bit = DIRTY_BIT_CLEARING;
    return submit_header(image, SYNC_CLEAN_WRITTEN);
}

static enum sync_state clean_failed(struct image *image)
{
    image->dirty_bit = DIRTY_BIT_UNSURE;
    return sync_end(image, image->sync->op.wait.result);
}

static enum sync_state clean_written(struct image *image)
{
    if (image->sync->op.wait.result < 0)
        return clean_failed(image);
    return submit_barrier(image, SYNC_CLEAN_DURABLE);
}

static enum sync_state clean_durable(struct image *image)
{
    if (image->sync->op.wait.result < 0)
        return clean_failed(image);
    image->dirty_bit = DIRTY_BIT_CLEAR;
    return sync_end(image, 0);
}

static const char *const state_names[] = {
    [SYNC_BEGIN] = "begin",
    [SYNC_HEADER] = "header",
    [SYNC_REFCOUNTS] = "refcounts",
    [SYNC_PREPARED] = "prepared",
    [SYNC_TABLES] = "tables",
    [SYNC_WRITTEN] = "written",
    [SYNC_DURABLE] = "durable",
    [SYNC_CLEAN_REFCOUNTS] = "clean refcounts",
    [SYNC_CLEAN_BARRIER] = "clean barrier",
    [SYNC_CLEAN_WRITTEN] = "clean written",
    [SYNC_CLEAN_DURABLE] = "clean durable",
};

// ---- The step function

static enum sync_state (*const stages[])(struct image *image) = {
    [SYNC_BEGIN] = sync_begin,
    [SYNC_HEADER] = write_header,
    [SYNC_REFCOUNTS] = sync_write_refcounts,
    [SYNC_PREPARED] = first_barrier,
    [SYNC_TABLES] = sync_write_tables,
    [SYNC_WRITTEN] = last_barrier,
    [SYNC_DURABLE] = durable,
    [SYNC_CLEAN_REFCOUNTS] = clean_refcounts,
    [SYNC_CLEAN_BARRIER] = clean_header,
    [SYNC_CLEAN_WRITTEN] = clean_written,
    [SYNC_CLEAN_DURABLE] = clean_durable,
};

static void sync_step(struct op *op)
{
    struct image *image = op->image;
    enum sync_state state = (enum sync_state)op->state;

    // Every error of a barrier counts as EIO: a host that reserves space late answers ENOSPC here,
    // and has dropped data.
    if (image->sync->barrier && op->wait.result < 0)
        op->wait.result = -EIO;
    if (image->sync->barrier && op->wait.result == 0)
        sync_facts_barrier(&image->sync->facts);
    image->sync->barrier = false;
    // A stage before DURABLE that fails ends there. Refcounts undo a failed write themselves.
    if (op->wait.result < 0 && state < SYNC_DURABLE && state != SYNC_REFCOUNTS)
        state = SYNC_DURABLE;
    while (state != SYNC_PARKED) {
        op->state = state;
        if (image->host.trace)
            image_trace_op(image, op, "stage");
        assert_sync_state(image, state, op->wait.result);
        state = stages[state](image);
    }
}

static const struct op_machine sync_machine = OP_MACHINE("sync", sync_step, state_names);
