// SPDX-License-Identifier: Apache-2.0
// writeback.h: pieces of metadata on their way to disk, as private copies: what changes in memory
// meanwhile does not tear what is written. Neighbours in the file go out in one write.
#ifndef LAZYCOW_QCOW2_DURABLE_WRITEBACK_H
#define LAZYCOW_QCOW2_DURABLE_WRITEBACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "qcow2/base/file.h"

struct op;
struct slice;

// Writes in flight at once: enough to keep a disk busy.
#define WRITEBACK_DEPTH 16

enum writeback_kind { WRITEBACK_L2, WRITEBACK_L1, WRITEBACK_REFCOUNTS, WRITEBACK_TABLE };

struct writeback_piece {
    enum writeback_kind kind;
    uint64_t offset; // in the file
    size_t length;
    size_t at;           // in the buffer
    struct slice *slice; // WRITEBACK_L2
    uint64_t page;       // WRITEBACK_REFCOUNTS: the page; WRITEBACK_L1, _TABLE: the piece
    uint64_t piece;      // WRITEBACK_REFCOUNTS: within the page
};

struct writeback_slot {
    struct writeback *writeback;
    bool busy;
    struct file_io io;
    struct iovec iov;
};

struct writeback {
    struct op *op; // gets its next turn when all is written
    struct file *file;
    struct writeback_piece *pieces;
    size_t count;
    size_t capacity;
    unsigned char *buffer;
    size_t used;
    size_t size;
    size_t next;     // first piece that is not submitted
    unsigned active; // writes in flight
    int result;      // first error
    struct writeback_slot slots[WRITEBACK_DEPTH];
};

void writeback_free(struct writeback *wb);
// Room for one more piece: where to encode it, or NULL without memory. The pointer is good until
// the next call; writeback_add then says what it is.
void *writeback_room(struct writeback *wb, size_t length);
void writeback_add(struct writeback *wb, const struct writeback_piece *piece);
// Writes all pieces. The op's next turn comes when that is done, with wait.result the first error.
void writeback_start(struct writeback *wb, struct op *op, struct file *file);
// Forgets the pieces.
void writeback_clear(struct writeback *wb);

#endif
