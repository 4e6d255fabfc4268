// SPDX-License-Identifier: Apache-2.0
//
//   place -> blocks (batch after batch) -> [barrier -> table -> [barrier -> pointer -> barrier]] ->
//   done
//
// A new block lies in fresh space and is unreachable until its table entry is durable. The entry is
// written behind a barrier, because a block that reads as zeros would make clusters in use look
// free. For this reason a table that moves is also durable before the header points at it.
#include "qcow2/durable/refcount_write.h"

#include <errno.h>

#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"
#include "qcow2/durable/writeback.h"
#include "qcow2/format/format.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/header.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"

// Pieces in one batch, which bounds the copies to 1 MiB.
#define BATCH_PIECES 256

// Gives a block to each page that has refcounts and no block. A block takes a cluster, which may
// need a block of its own. This ends, because a block counts far more clusters than it takes.
static int place_blocks(struct op *op)
{
    struct image *image = op->image;
    struct refcounts *rc = image->refcounts;
    bool again = rc->dirty_pages > 0;

    while (again) {
        again = false;
        for (uint64_t page = refcounts_next_dirty(rc, 0); page < rc->table_size;
             page = refcounts_next_dirty(rc, page + 1)) {
            uint64_t cluster;

            if (rc->table[page] != 0 || refcounts_page_empty(rc, page))
                continue;
            int result = alloc_fresh_exact(op, 1, &cluster);
            if (result == 0 && guard_refuses(image, cluster << rc->geometry.cluster_bits,
                                             rc->geometry.cluster_size))
                result = -EIO;
            if (result != 0)
                return result;
            result = guard_add(image, cluster << rc->geometry.cluster_bits);
            if (result < 0) {
                quarantine_add(image, cluster, 1);
                return result;
            }
            // From here on the page has its block, so nothing may fail before all of the block is
            // dirty.
            refcounts_set_block(rc, page, cluster << rc->geometry.cluster_bits);
            // All pieces are written, also the zeros: the space may not have been fresh.
            for (uint64_t piece = 0; piece < refcounts_pieces(rc); piece++)
                refcounts_piece_again(rc, page, piece);
            again = true;
        }
    }
    return 0;
}

static uint64_t table_clusters(const struct refcounts *rc)
{
    return geometry_clusters(&rc->geometry, rc->table_size * FORMAT_ENTRY_BYTES);
}

static int place_table(struct op *op, struct refcount_write *rw)
{
    struct image *image = op->image;
    struct refcounts *rc = image->refcounts;
    uint64_t clusters = table_clusters(rc);

    if (rw->moving && rw->table_clusters < clusters) {
        // The table has grown again since its clusters were taken.
        quarantine_add(image, rw->table_first, rw->table_clusters);
        rw->moving = false;
    }
    if (!rc->table_moved || rw->moving)
        return 0;
    int result = alloc_fresh_exact(op, clusters, &rw->table_first);
    if (result == 0 && guard_refuses(image, rw->table_first << rc->geometry.cluster_bits,
                                     clusters << rc->geometry.cluster_bits))
        result = -EIO;
    if (result != 0)
        return result;
    rw->table_clusters = clusters;
    rw->moving = true;
    return 0;
}

// Repeats until a round takes no clusters: blocks need clusters, clusters need a table that covers
// them, and a table needs clusters. Any part may park, and ops take clusters meanwhile.
static int refcount_write_place(struct op *op, struct refcount_write *rw)
{
    const struct alloc *alloc = op->image->alloc;
    uint64_t fresh;

    do {
        fresh = alloc->fresh;
        int result = place_blocks(op);

        if (result == 0)
            result = place_table(op, rw);
        if (result != 0)
            return result;
    } while (alloc->fresh != fresh);
    rw->state = REFCOUNT_WRITE_BLOCKS;
    rw->next_page = 0;
    return 0;
}

static int refcount_write_add_piece(struct image *image, struct refcount_write *rw, uint64_t page,
                                    uint64_t piece)
{
    struct writeback *wb = &rw->writeback;
    struct refcounts *rc = image->refcounts;
    void *room = writeback_room(wb, rc->geometry.piece_bytes);

    if (!room)
        return -ENOMEM;
    refcounts_encode_piece(rc, page, piece, room);
    writeback_add(wb, &(struct writeback_piece){.kind = WRITEBACK_REFCOUNTS,
                                                .offset = rc->table[page] +
                                                          (piece << rc->geometry.piece_bits),
                                                .length = rc->geometry.piece_bytes,
                                                .page = page,
                                                .piece = piece});
    refcounts_piece_written(rc, page, piece);
    return 0;
}

// Drops the dirty marks of a page whose refcounts came and went: it needs no block, and the disk
// has none.
static void forget_empty_page(struct refcounts *rc, uint64_t page)
{
    if (!refcounts_page_empty(rc, page))
        return;
    for (uint64_t piece = 0; piece < refcounts_pieces(rc); piece++) {
        if (refcounts_piece_dirty(rc, page, piece))
            refcounts_piece_written(rc, page, piece);
    }
}

// Copies the next batch of dirty pieces.
static int collect_blocks(struct image *image, struct refcount_write *rw)
{
    struct refcounts *rc = image->refcounts;
    struct writeback *wb = &rw->writeback;

    for (rw->next_page = refcounts_next_dirty(rc, rw->next_page); rw->next_page < rc->table_size;
         rw->next_page = refcounts_next_dirty(rc, rw->next_page + 1)) {
        if (rc->table[rw->next_page] == 0) {
            forget_empty_page(rc, rw->next_page);
            continue;
        }
        for (uint64_t piece = 0; piece < refcounts_pieces(rc); piece++) {
            if (!refcounts_piece_dirty(rc, rw->next_page, piece))
                continue;
            if (wb->count == BATCH_PIECES)
                return 0;
            int result = refcount_write_add_piece(image, rw, rw->next_page, piece);
            if (result < 0)
                return result;
        }
    }
    return 0;
}

static int blocks(struct op *op, struct refcount_write *rw)
{
    struct image *image = op->image;
    struct writeback *wb = &rw->writeback;

    writeback_clear(wb);
    int result = collect_blocks(image, rw);
    if (result < 0)
        return result;
    if (wb->count > 0) {
        writeback_start(wb, op, image->file);
        return OP_PARKED;
    }
    rw->state = image->refcounts->table_any_dirty || rw->moving ? REFCOUNT_WRITE_BARRIER
                                                                : REFCOUNT_WRITE_DONE;
    return 0;
}

static int add_table_piece(struct image *image, struct refcount_write *rw, uint64_t base,
                           uint64_t piece)
{
    struct refcounts *rc = image->refcounts;
    uint64_t entries = rc->geometry.piece_bytes / FORMAT_ENTRY_BYTES;
    unsigned char *room = writeback_room(&rw->writeback, rc->geometry.piece_bytes);

    if (!room)
        return -ENOMEM;
    for (uint64_t i = 0; i < entries; i++)
        format_put64(room + i * FORMAT_ENTRY_BYTES, rc->table[piece * entries + i]);
    writeback_add(&rw->writeback,
                  &(struct writeback_piece){.kind = WRITEBACK_TABLE,
                                            .offset = base + (piece << rc->geometry.piece_bits),
                                            .length = rc->geometry.piece_bytes,
                                            .page = piece});
    return 0;
}

static int table(struct op *op, struct refcount_write *rw)
{
    struct image *image = op->image;
    struct refcounts *rc = image->refcounts;
    uint64_t base = rw->moving ? rw->table_first << rc->geometry.cluster_bits
                               : image->header.refcount_table_offset;
    uint64_t clusters = rw->moving ? rw->table_clusters : image->header.refcount_table_clusters;
    uint64_t pieces = clusters << (rc->geometry.cluster_bits - rc->geometry.piece_bits);

    // The table in memory may have grown since its clusters were taken. Its new part has no blocks
    // yet.
    writeback_clear(&rw->writeback);
    for (uint64_t piece = 0; piece < pieces; piece++) {
        if (!rw->moving && !refcounts_table_piece_dirty(rc, piece))
            continue;
        int result = add_table_piece(image, rw, base, piece);
        if (result < 0)
            return result;
    }
    rw->state = rw->moving ? REFCOUNT_WRITE_POINTER : REFCOUNT_WRITE_DONE;
    writeback_start(&rw->writeback, op, image->file);
    return OP_PARKED;
}

// Writes the 12 bytes of the pointer, which lie inside one sector, so that a power cut leaves the
// old pointer or the new one.
static int write_pointer(struct op *op, struct refcount_write *rw)
{
    format_put64(rw->pointer, rw->table_first << op->image->geometry.cluster_bits);
    format_put32(rw->pointer + 8, (uint32_t)rw->table_clusters);
    rw->iov = (struct iovec){.iov_base = rw->pointer, .iov_len = sizeof(rw->pointer)};
    rw->state = REFCOUNT_WRITE_MOVED;
    rw->named = true;
    op_submit(op, op->image->file, FILE_WRITE, HEADER_OFFSET_REFCOUNT_TABLE, sizeof(rw->pointer),
              &rw->iov, 1);
    return OP_PARKED;
}

// The header points at the new table: gives up the clusters of the old one.
static int moved(struct op *op, struct refcount_write *rw)
{
    struct image *image = op->image;
    struct header *header = &image->header;

    if (image->refcounts->place != REFCOUNT_TABLE_FOREIGN)
        quarantine_add(image, header->refcount_table_offset >> header->cluster_bits,
                       header->refcount_table_clusters);
    image->refcounts->place = REFCOUNT_TABLE_CLAIMED;
    header->refcount_table_offset = rw->table_first << header->cluster_bits;
    header->refcount_table_clusters = (uint32_t)rw->table_clusters;
    guard_move_refcount_table(image, rw->table_first, rw->table_clusters);
    image->refcounts->table_moved = image->refcounts->table_size * FORMAT_ENTRY_BYTES >
                                    rw->table_clusters << header->cluster_bits;
    rw->named = false;
    rw->state = REFCOUNT_WRITE_DONE;
    return REFCOUNT_WRITE_NEEDS_BARRIER;
}

// Makes the pieces of a failed batch dirty again, except those that reached the disk.
static void take_back(struct image *image, struct refcount_write *rw)
{
    struct writeback *wb = &rw->writeback;

    for (size_t i = 0; i < wb->count; i++) {
        if (wb->pieces[i].kind == WRITEBACK_REFCOUNTS)
            refcounts_piece_again(image->refcounts, wb->pieces[i].page, wb->pieces[i].piece);
    }
    writeback_clear(wb);
}

static int barrier_before(struct refcount_write *rw, enum refcount_write_state next)
{
    rw->state = next;
    return REFCOUNT_WRITE_NEEDS_BARRIER;
}

// Returns to the first state. The writeback keeps its memory.
static void reset(struct refcount_write *rw)
{
    rw->state = REFCOUNT_WRITE_PLACE;
    rw->moving = false;
    rw->next_page = 0;
    rw->table_first = 0;
    rw->table_clusters = 0;
}

// Ends a write after an error. Keeps a new table that the header may name for the next time.
static void give_up(struct image *image, struct refcount_write *rw)
{
    if (rw->named) {
        rw->state = REFCOUNT_WRITE_PLACE;
        return;
    }
    if (rw->moving && rw->state < REFCOUNT_WRITE_MOVED)
        quarantine_add(image, rw->table_first, rw->table_clusters);
    reset(rw);
}

void refcount_write_free(struct refcount_write *rw)
{
    writeback_free(&rw->writeback);
}

int refcount_write_turn(struct op *op, struct refcount_write *rw)
{
    struct image *image = op->image;
    int result = op->wait.result;

    while (result == 0) {
        switch (rw->state) {
        case REFCOUNT_WRITE_PLACE:
            result = refcount_write_place(op, rw);
            break;
        case REFCOUNT_WRITE_BLOCKS:
            result = blocks(op, rw);
            break;
        case REFCOUNT_WRITE_BARRIER:
            result = barrier_before(rw, REFCOUNT_WRITE_TABLE);
            break;
        case REFCOUNT_WRITE_TABLE:
            result = table(op, rw);
            break;
        case REFCOUNT_WRITE_POINTER:
            result = barrier_before(rw, REFCOUNT_WRITE_POINTED);
            break;
        case REFCOUNT_WRITE_POINTED:
            result = write_pointer(op, rw);
            break;
        case REFCOUNT_WRITE_MOVED:
            result = moved(op, rw);
            break;
        case REFCOUNT_WRITE_DONE:
            refcounts_table_written(image->refcounts);
            reset(rw);
            return 0;
        }
    }
    if (result < 0) {
        take_back(image, rw);
        give_up(image, rw);
    }
    return result;
}
