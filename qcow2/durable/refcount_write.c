// SPDX-License-Identifier: Apache-2.0
//
//   place -> blocks (batch after batch) -> [barrier -> table -> [barrier -> pointer -> barrier]] -> done
//
// A block lies in fresh space, so that until its table entry is durable nobody misses it; the entry
// is written behind a barrier, because a block that reads as zeros would give away clusters in use.
// The same holds for a table that moves and the header that points at it.
#include "qcow2/durable/refcount_write.h"

#include <errno.h>

#include "qcow2/request/change.h"
#include "qcow2/engine.h"

// Pieces in one batch: bounds the copies to 1 MiB.
#define BATCH_PIECES 256

// Gives each page that has refcounts and no block a block. That takes clusters, which may need
// blocks of their own; it ends because a block counts far more clusters than it takes.
static int place_blocks(struct op *op)
{
    struct image *image = op->image;
    struct refcounts *rc = &image->refcounts;
    bool again = rc->dirty_pages > 0;

    while (again) {
        again = false;
        for (uint64_t page = refcounts_next_dirty(rc, 0); page < rc->table_size;
             page = refcounts_next_dirty(rc, page + 1)) {
            uint64_t cluster;

            if (rc->table[page] != 0 || refcounts_page_empty(rc, page))
                continue;
            int result = alloc_fresh_exact(op, 1, &cluster);
            if (result == 0 && change_hits_metadata(image, cluster << rc->geometry.cluster_bits,
                                                    rc->geometry.cluster_size))
                result = -EIO;
            if (result != 0)
                return result;
            refcounts_set_block(rc, page, cluster << rc->geometry.cluster_bits);
            result = guard_add(image, cluster << rc->geometry.cluster_bits);
            if (result < 0)
                return result;
            // All pieces: where the space was not fresh after all, zeros have to be written too.
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
    struct refcounts *rc = &image->refcounts;
    uint64_t clusters = table_clusters(rc);

    if (rw->moving && rw->table_clusters < clusters) {
        // The table grew once more since it was placed.
        quarantine_add(image, rw->table_first, rw->table_clusters);
        rw->moving = false;
    }
    if (!rc->table_moved || rw->moving)
        return 0;
    int result = alloc_fresh_exact(op, clusters, &rw->table_first);
    if (result == 0 && change_hits_metadata(image, rw->table_first << rc->geometry.cluster_bits,
                                            clusters << rc->geometry.cluster_bits))
        result = -EIO;
    if (result != 0)
        return result;
    rw->table_clusters = clusters;
    rw->moving = true;
    return 0;
}

// Blocks need clusters, clusters need a table that reaches so far, and a table needs clusters:
// until a round takes none. Any part may park, and others take clusters meanwhile.
static int place(struct op *op, struct refcount_write *rw)
{
    const struct alloc *alloc = &op->image->alloc;
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

static int add_piece(struct image *image, uint64_t page, uint64_t piece)
{
    struct writeback *wb = &image->sync.refcount_writeback;
    struct refcounts *rc = &image->refcounts;
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

// A page whose refcounts came and went needs no block: it is on disk what it is in memory.
static void forget_empty_page(struct refcounts *rc, uint64_t page)
{
    if (!refcounts_page_empty(rc, page))
        return;
    for (uint64_t piece = 0; piece < refcounts_pieces(rc); piece++) {
        if (refcounts_piece_dirty(rc, page, piece))
            refcounts_piece_written(rc, page, piece);
    }
}

// The next batch of dirty pieces.
static int collect_blocks(struct image *image, struct refcount_write *rw)
{
    struct refcounts *rc = &image->refcounts;
    struct writeback *wb = &image->sync.refcount_writeback;

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
            int result = add_piece(image, rw->next_page, piece);
            if (result < 0)
                return result;
        }
    }
    return 0;
}

static int blocks(struct op *op, struct refcount_write *rw)
{
    struct image *image = op->image;
    struct writeback *wb = &image->sync.refcount_writeback;

    writeback_clear(wb);
    int result = collect_blocks(image, rw);
    if (result < 0)
        return result;
    if (wb->count > 0) {
        writeback_start(wb, op);
        return OP_PARKED;
    }
    rw->state = image->refcounts.table_any_dirty || rw->moving ? REFCOUNT_WRITE_BARRIER
                                                               : REFCOUNT_WRITE_DONE;
    return 0;
}

static int add_table_piece(struct image *image, uint64_t base, uint64_t piece)
{
    struct refcounts *rc = &image->refcounts;
    uint64_t entries = rc->geometry.piece_bytes / FORMAT_ENTRY_BYTES;
    unsigned char *room = writeback_room(&image->sync.refcount_writeback, rc->geometry.piece_bytes);

    if (!room)
        return -ENOMEM;
    for (uint64_t i = 0; i < entries; i++)
        format_put64(room + i * FORMAT_ENTRY_BYTES, rc->table[piece * entries + i]);
    writeback_add(&image->sync.refcount_writeback,
                  &(struct writeback_piece){.kind = WRITEBACK_TABLE,
                                            .offset = base + (piece << rc->geometry.piece_bits),
                                            .length = rc->geometry.piece_bytes,
                                            .page = piece});
    return 0;
}

static int table(struct op *op, struct refcount_write *rw)
{
    struct image *image = op->image;
    struct refcounts *rc = &image->refcounts;
    uint64_t base = rw->moving ? rw->table_first << rc->geometry.cluster_bits
                               : image->header.refcount_table_offset;
    uint64_t clusters = rw->moving ? rw->table_clusters : image->header.refcount_table_clusters;
    uint64_t pieces = clusters << (rc->geometry.cluster_bits - rc->geometry.piece_bits);

    // The table in memory may have grown since it was placed; what is behind has no blocks yet.
    writeback_clear(&image->sync.refcount_writeback);
    for (uint64_t piece = 0; piece < pieces; piece++) {
        if (!rw->moving && !refcounts_table_piece_dirty(rc, piece))
            continue;
        int result = add_table_piece(image, base, piece);
        if (result < 0)
            return result;
    }
    rw->state = rw->moving ? REFCOUNT_WRITE_POINTER : REFCOUNT_WRITE_DONE;
    writeback_start(&image->sync.refcount_writeback, op);
    return OP_PARKED;
}

// The 12 bytes lie inside one sector, so a power cut leaves the old pointer or the new one.
static int write_pointer(struct op *op, struct refcount_write *rw)
{
    struct sync *sync = &op->image->sync;

    format_put64(rw->pointer, rw->table_first << op->image->geometry.cluster_bits);
    format_put32(rw->pointer + 8, (uint32_t)rw->table_clusters);
    sync->iov = (struct iovec){.iov_base = rw->pointer, .iov_len = sizeof(rw->pointer)};
    rw->state = REFCOUNT_WRITE_MOVED;
    op_submit(op, FILE_WRITE, HEADER_OFFSET_REFCOUNT_TABLE, sizeof(rw->pointer), &sync->iov, 1);
    return OP_PARKED;
}

// The new table is in force; the clusters of the old one are given up.
static int moved(struct op *op, struct refcount_write *rw)
{
    struct image *image = op->image;
    struct header *header = &image->header;

    if (!image->refcounts.table_foreign)
        quarantine_add(image, header->refcount_table_offset >> header->cluster_bits,
                       header->refcount_table_clusters);
    image->refcounts.table_foreign = false;
    header->refcount_table_offset = rw->table_first << header->cluster_bits;
    header->refcount_table_clusters = (uint32_t)rw->table_clusters;
    guard_move_refcount_table(image, rw->table_first, rw->table_clusters);
    image->refcounts.table_moved = image->refcounts.table_size * FORMAT_ENTRY_BYTES >
                                   rw->table_clusters << header->cluster_bits;
    rw->state = REFCOUNT_WRITE_DONE;
    sync_submit_barrier(&op->image->sync);
    return OP_PARKED;
}

// What of a failed batch did not reach the disk is written again next time.
static void take_back(struct image *image)
{
    struct writeback *wb = &image->sync.refcount_writeback;

    for (size_t i = 0; i < wb->count; i++) {
        if (wb->pieces[i].kind == WRITEBACK_REFCOUNTS)
            refcounts_piece_again(&image->refcounts, wb->pieces[i].page, wb->pieces[i].piece);
    }
    writeback_clear(wb);
}

static int barrier(struct op *op, struct refcount_write *rw, enum refcount_write_state next)
{
    rw->state = next;
    sync_submit_barrier(&op->image->sync);
    return OP_PARKED;
}

int refcount_write_turn(struct op *op, struct refcount_write *rw)
{
    struct image *image = op->image;
    int result = op->wait_result;

    while (result == 0) {
        switch (rw->state) {
        case REFCOUNT_WRITE_PLACE:
            result = place(op, rw);
            break;
        case REFCOUNT_WRITE_BLOCKS:
            result = blocks(op, rw);
            break;
        case REFCOUNT_WRITE_BARRIER:
            result = barrier(op, rw, REFCOUNT_WRITE_TABLE);
            break;
        case REFCOUNT_WRITE_TABLE:
            result = table(op, rw);
            break;
        case REFCOUNT_WRITE_POINTER:
            result = barrier(op, rw, REFCOUNT_WRITE_POINTED);
            break;
        case REFCOUNT_WRITE_POINTED:
            result = write_pointer(op, rw);
            break;
        case REFCOUNT_WRITE_MOVED:
            result = moved(op, rw);
            break;
        case REFCOUNT_WRITE_DONE:
            refcounts_table_written(&image->refcounts);
            *rw = (struct refcount_write){0};
            return 0;
        }
    }
    if (result < 0) {
        take_back(image);
        if (rw->moving && rw->state < REFCOUNT_WRITE_MOVED)
            quarantine_add(image, rw->table_first, rw->table_clusters);
        *rw = (struct refcount_write){0};
    }
    return result;
}
