// SPDX-License-Identifier: Apache-2.0
// writeback.h: writes pieces of metadata from private copies, so that a change in memory does not
// tear a write in flight. Neighbours in the file go out in one write.
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
    // WRITEBACK_REFCOUNTS: index of the refcount page. WRITEBACK_L1, WRITEBACK_TABLE: index of the
    // piece.
    uint64_t page;
    // WRITEBACK_REFCOUNTS: index of the piece in its page.
    uint64_t piece;
};

struct writeback_slot {
    struct writeback *writeback;
    bool busy;
    struct file_io io;
    struct iovec iov;
};

struct writeback {
    // Takes its next turn when all pieces are written.
    struct op *op;
    struct file *file;
    struct writeback_piece *pieces;
    size_t count;
    size_t capacity;
    unsigned char *buffer;
    size_t used;
    size_t size;
    // Index of the first piece that is not submitted.
    size_t next;
    unsigned active; // writes in flight
    int result;      // first error
    struct writeback_slot slots[WRITEBACK_DEPTH];
};

void writeback_free(struct writeback *wb);
// Returns room to encode one more piece, or NULL without memory. The pointer is valid until the
// next call. writeback_add then tells which piece the room holds.
void *writeback_room(struct writeback *wb, size_t length);
void writeback_add(struct writeback *wb, const struct writeback_piece *piece);
// Writes all pieces. The op's next turn finds 0 or the first error in wait.result.
void writeback_start(struct writeback *wb, struct op *op, struct file *file);
// Drops the pieces and keeps the memory.
void writeback_clear(struct writeback *wb);

#endif
