// SPDX-License-Identifier: Apache-2.0
//
//   walk (counts every reference) ──> keep the refcount blocks that are nobody else's
//     ──> cut the file behind the last reference ──> clusters may be taken and freed again
//
// Nothing changes the mapping meanwhile, so the tables on disk are the current tables. Clusters
// behind the last reference were written before the crash and never linked. After the cut their
// space reads as zeros again, and the file does not grow from crash to crash. The first sync that
// follows has a barrier before its tables, so that the cut is durable before any entry refers to
// that space.
//
// An invalid entry may be a damaged reference, even to a table, and all clusters behind it look
// unused. So with such a fault nothing is cut, no cluster that looks free is taken, and the image
// is not marked clean: whatever 'lazycow check' or its user may still save stays as it is.
//
// Bitmaps are not counted: a bitmap of an image that was not closed cleanly is out of date, and its
// directory may be damaged. sync.c takes bitmaps out of the header first, before any of their
// clusters counts as free. An image that was closed cleanly comes here when its bitmaps end, at the
// first change: that frees their clusters by the same rules.
//
// A power cut during the pass finds the tables untouched and the dirty bit set: the next start
// counts again.
#include "qcow2/durable/recover.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/format/bitmap_directory.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/header.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"
#include "qcow2/walk/walk.h"

// An image that is counted has no bitmaps any more.
static const struct bitmap_directory no_bitmaps;

enum { RECOVER_CLAIM, RECOVER_CUT, RECOVER_END };

static const char *const state_names[] = {
    [RECOVER_CLAIM] = "claim",
    [RECOVER_CUT] = "cut",
    [RECOVER_END] = "end",
};

bool recover_done(const struct image *image)
{
    return !image->recovery->running && image->recovery->error == 0;
}

bool recover_complete(const struct image *image)
{
    return recover_done(image) && image->recovery->hidden == 0;
}

int recover_wait(struct op *op)
{
    struct recovery *recovery = op->image->recovery;

    if (recovery->running)
        return op_park(op, &recovery->waiters);
    return recovery->error;
}

static void tell_fault(struct image *image, const char *what, uint64_t guest, uint64_t host)
{
    if (++image->recovery->faults > RECOVER_FAULTS_TOLD)
        return;
    image_log(image, "%s (guest offset %llu, host offset %llu); run 'lazycow check'", what,
              (unsigned long long)guest, (unsigned long long)host);
}

// ---- Counting

// Counts the references to clusters that are in one page. The COPIED flag is checked in active
// tables only: a snapshot's L1 table keeps the flag from the time of the snapshot.
static int count_run(struct image *image, const struct walk_reference *ref, uint64_t first,
                     uint64_t clusters)
{
    struct refcounts *rc = image->refcounts;
    unsigned bits = image->geometry.cluster_bits;
    int result = refcounts_reach(rc, first);

    if (result == 0 && ref->copied && ref->active > 0 && !refcounts_all_free(rc, first, clusters))
        tell_fault(image, "two references to a cluster that says it has one", ref->guest,
                   first << bits);
    if (result == 0)
        result = refcounts_add(rc, first, clusters, ref->count);
    if (result == -ENOMEM)
        return result;
    if (result < 0) {
        image->recovery->hidden++;
        tell_fault(image,
                   result == -ERANGE ? "a cluster has more references than can be counted"
                                     : "a cluster lies farther out than can be counted",
                   ref->guest, first << bits);
    } else if (first + clusters > image->recovery->end) {
        image->recovery->end = first + clusters;
    }
    return 0;
}

static int visit_reference(void *context, const struct walk_reference *ref)
{
    struct image *image = context;
    unsigned block_bits = image->refcounts->geometry.block_bits;
    uint64_t first = ref->cluster;
    uint64_t end = ref->cluster + ref->clusters;

    if (ref->copied && ref->active > 0 && ref->count > 1)
        tell_fault(image, "a cluster that snapshots share says that it is not shared", ref->guest,
                   ref->cluster << image->geometry.cluster_bits);
    while (first < end) {
        uint64_t page_end = ((first >> block_bits) + 1) << block_bits;
        uint64_t stop = page_end < end ? page_end : end;
        int result = count_run(image, ref, first, stop - first);

        if (result < 0)
            return result;
        first = stop;
    }
    return 0;
}

static int visit_problem(void *context, const struct walk_problem *problem)
{
    struct image *image = context;

    // A wrong flag on an otherwise valid entry hides no references.
    if (problem->fault != WALK_COPIED_NOTHING && problem->fault != WALK_COMPRESSED_FLAGS)
        image->recovery->hidden++;
    tell_fault(image, "an invalid table entry", problem->guest, problem->entry);
    return 0;
}

static void visit_progress(void *context, uint64_t done, uint64_t total)
{
    struct image *image = context;
    uint64_t percent = done * 100 / total;

    if (total < RECOVER_TABLES_TOLD || percent < image->recovery->told_percent + 10)
        return;
    image->recovery->told_percent = percent;
    image_log(image, "recovery: %llu %% of the tables counted", (unsigned long long)percent);
}

static const struct walk_visitor visitor = {
    .reference = visit_reference, .problem = visit_problem, .progress = visit_progress};

// ---- What is left of the old refcounts

// Counts one reference to each cluster of a refcount structure. Returns false, and counts nothing,
// when another structure turned out to be there, or when the clusters are not in the file, which
// would otherwise grow as far as the entry says.
static bool claim(struct image *image, uint64_t offset, uint64_t clusters)
{
    struct refcounts *rc = image->refcounts;
    uint64_t first = offset >> image->geometry.cluster_bits;
    int64_t size = file_size(image->file);

    if (geometry_in_cluster(&image->geometry, offset) != 0 || size < 0 ||
        first + clusters > geometry_clusters(&image->geometry, (uint64_t)size))
        return false;
    for (uint64_t i = 0; i < clusters; i++) {
        if (refcounts_reach(rc, first + i) < 0 || refcounts_get(rc, first + i) != 0)
            return false;
    }
    for (uint64_t i = 0; i < clusters; i++) {
        if (refcounts_set(rc, first + i, 1) < 0)
            return false;
    }
    if (first + clusters > image->recovery->end)
        image->recovery->end = first + clusters;
    return true;
}

static void claim_table(struct image *image)
{
    struct refcounts *rc = image->refcounts;
    const struct header *header = &image->header;

    if (claim(image, header->refcount_table_offset, header->refcount_table_clusters)) {
        rc->place = REFCOUNT_TABLE_CLAIMED;
        guard_move_refcount_table(image, header->refcount_table_offset >> header->cluster_bits,
                                  header->refcount_table_clusters);
        return;
    }
    tell_fault(image, "the refcount table lies where something else does, or beyond the end", 0,
               header->refcount_table_offset);
    rc->table_moved = true;
    rc->place = REFCOUNT_TABLE_FOREIGN;
    guard_move_refcount_table(image, 0, 0);
}

// Claims the block of a page, if it has one, and makes all of it dirty, because its content on disk
// is not known to be right. Returns 0 or -ENOMEM.
static int claim_block(struct image *image, uint64_t page)
{
    struct refcounts *rc = image->refcounts;
    int result = 0;

    if (rc->table[page] != 0 && !claim(image, rc->table[page], 1))
        refcounts_set_block(rc, page, 0);
    else if (rc->table[page] != 0)
        result = guard_add(image, rc->table[page]);
    rc->blocks_claimed = page + 1;
    for (uint64_t piece = 0; rc->table[page] != 0 && piece < refcounts_pieces(rc) && result == 0;
         piece++)
        result = refcounts_piece_again(rc, page, piece);
    return result;
}

// Claims the remaining blocks. Returns 0 when all are claimed, OP_PARKED when the next turn
// continues, or -ENOMEM.
static int claim_blocks(struct op *op)
{
    struct image *image = op->image;
    struct recovery *recovery = image->recovery;
    struct refcounts *rc = image->refcounts;
    uint64_t pieces = 0;

    for (; recovery->next_page < rc->table_size; recovery->next_page++) {
        if (pieces >= RECOVER_PIECES_A_TURN) {
            op_post(op);
            return OP_PARKED;
        }
        pieces += rc->table[recovery->next_page] ? refcounts_pieces(rc) : 1;
        int result = claim_block(image, recovery->next_page);
        if (result < 0)
            return result;
    }
    rc->blocks_claimed = REFCOUNT_BLOCKS_ALL;
    return 0;
}

// ---- The end

static void end_recovery(struct image *image, int result)
{
    struct recovery *recovery = image->recovery;

    recovery->running = false;
    recovery->error = result < 0 ? -EIO : 0;
    if (result < 0)
        image_log(image,
                  "recovery failed (%s): no new clusters can be written; run 'lazycow check'",
                  strerror(-result));
    else
        image_log(image, "recovery: done, %llu faults found", (unsigned long long)recovery->faults);
    waitq_wake(&recovery->waiters, 0);
}

static void cut_step(struct op *op)
{
    struct image *image = op->image;
    struct recovery *recovery = image->recovery;
    uint64_t cluster_size = image->geometry.cluster_size;
    uint64_t end = recovery->end << image->geometry.cluster_bits;
    int64_t size = file_size(image->file);

    if (op->wait.result < 0 || size < 0) {
        end_recovery(image, op->wait.result < 0 ? op->wait.result : (int)size);
        return;
    }
    if (recovery->hidden > 0 && (uint64_t)size > end) {
        recovery->end = ((uint64_t)size + cluster_size - 1) / cluster_size;
        end = recovery->end << image->geometry.cluster_bits;
    }
    // A file that is too short also gets its length: it may be closed cleanly without ever growing.
    if (op->state == RECOVER_CUT && (uint64_t)size != end && image->file->fresh_is_zero) {
        op->state = RECOVER_END;
        op_submit(op, image->file, FILE_TRUNCATE, end, 0, NULL, 0);
        return;
    }
    alloc_init(image->alloc, image, recovery->end, (uint64_t)size < end ? (uint64_t)size : end,
               recovery->hidden == 0);
    sync_need_barrier(image);
    end_recovery(image, 0);
}

static void recover_step(struct op *op)
{
    if (op->wait.result == 0 && op->state == RECOVER_CLAIM) {
        op->wait.result = claim_blocks(op);
        if (op->wait.result == OP_PARKED) {
            op->wait.result = 0;
            return;
        }
        op->state = RECOVER_CUT;
    }
    cut_step(op);
}

static const struct op_machine recover_machine = OP_MACHINE("recovery", recover_step, state_names);

static void walk_ended(void *context, int result)
{
    struct image *image = context;
    struct recovery *recovery = image->recovery;

    if (result == 0)
        claim_table(image);
    recovery->next_page = 0;
    op_init(&recovery->op, image, image->runq, &recover_machine);
    recovery->op.state = RECOVER_CLAIM;
    recovery->op.wait.result = result;
    op_post(&recovery->op);
}

// Begins to count the refcounts anew, because those on disk may be too high or too low.
static void count_anew(struct image *image)
{
    struct recovery *recovery = image->recovery;

    // References given up before would be given up a second time after the count.
    assert(quarantine_empty(image->quarantine) && !image->alloc->taken);
    refcounts_forget(image->refcounts);
    // Until the end of the pass no cluster counts as beyond the end.
    image->alloc->fresh = ALLOC_FRESH_UNKNOWN;
    recovery->running = true;
    recovery->error = 0;
    recovery->faults = recovery->hidden = recovery->end = recovery->told_percent = 0;
    recovery->walk = (struct walk){.file = image->file,
                                   .header = &image->header,
                                   .snapshots = &image->snapshots,
                                   .bitmaps = &no_bitmaps,
                                   .visitor = &visitor,
                                   .context = image,
                                   .parts = WALK_MAPPING | WALK_SNAPSHOTS | WALK_OTHER,
                                   .done = walk_ended};
    walk_start(&recovery->walk);
}

void recover_start(struct image *image)
{
    image_log(image, "was not closed cleanly: counting its clusters while serving");
    if (!image->has_bitmaps) {
        count_anew(image);
        return;
    }
    image->recovery->running = true;
    refcounts_unclaim(image->refcounts);
    image->drop_autoclear = true;
    sync_request(image);
}

void recover_without_bitmaps(struct image *image, int result)
{
    if (result == 0) {
        image_log(image, "its bitmaps are gone: counting its clusters while serving");
        count_anew(image);
    } else if (image->recovery->running) {
        end_recovery(image, result);
    }
}
