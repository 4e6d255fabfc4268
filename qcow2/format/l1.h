// SPDX-License-Identifier: Apache-2.0
// l1.h: the active L1 table, wholly in memory (at most HEADER_L1_BYTES_MAX), with a mark on each
// dirty piece. Format: qcow2 specification, "L1 table entry".
#ifndef LAZYCOW_QCOW2_FORMAT_L1_H
#define LAZYCOW_QCOW2_FORMAT_L1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/format/geometry.h"

struct l1 {
    uint64_t *entries; // host byte order
    uint64_t size;     // entries
    unsigned piece_bits;
    uint64_t *dirty; // bit a piece
    uint64_t dirty_count;
};

// Reads the table that the header names, blocking. Returns 0 or a negative errno with a message.
int l1_read(struct l1 *l1, struct file *file, const struct header *header, const struct geometry *g,
            struct error *err);
void l1_free(struct l1 *l1);
void l1_set(struct l1 *l1, uint64_t index, uint64_t entry);

uint64_t l1_pieces(const struct l1 *l1);
bool l1_piece_dirty(const struct l1 *l1, uint64_t piece);
void l1_mark_piece(struct l1 *l1, uint64_t piece, bool dirty);
// Encodes the piece as it goes to disk into buf (1 << piece_bits bytes). Returns its length in
// bytes, which is less for the last piece.
size_t l1_encode_piece(const struct l1 *l1, uint64_t piece, void *buf);

#endif
