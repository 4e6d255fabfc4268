// SPDX-License-Identifier: Apache-2.0
// tables_write.h: which pieces of L1 and L2 a sync writes. Part of a sync; see sync.c for when.
#ifndef LAZYCOW_QCOW2_DURABLE_TABLES_WRITE_H
#define LAZYCOW_QCOW2_DURABLE_TABLES_WRITE_H

#include <stdbool.h>

struct image;
struct writeback;

// Copies what is dirty to wb. Returns 0 or -ENOMEM: settle what was copied.
int tables_copy(struct image *image, struct writeback *wb);
// The copies are on disk, or did not get there (failed) and are dirty again.
void tables_settle(struct image *image, struct writeback *wb, bool failed);

#endif
