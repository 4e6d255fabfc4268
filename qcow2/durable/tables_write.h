// SPDX-License-Identifier: Apache-2.0
// tables_write.h: selects the pieces of L1 and L2 tables that a sync writes. sync.c tells when.
#ifndef LAZYCOW_QCOW2_DURABLE_TABLES_WRITE_H
#define LAZYCOW_QCOW2_DURABLE_TABLES_WRITE_H

#include <stdbool.h>

struct image;
struct writeback;

// Copies all dirty pieces to wb. Returns 0, or -ENOMEM: the caller then settles the pieces that
// were copied.
int tables_copy(struct image *image, struct writeback *wb);
// Ends the write of the copies: they are on disk, or (failed) the pieces that did not get there are
// dirty again.
void tables_settle(struct image *image, struct writeback *wb, bool failed);

#endif
