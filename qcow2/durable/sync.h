// SPDX-License-Identifier: Apache-2.0
// sync.h: makes written data durable. Only sync.c orders writes and barriers of a served image; the
// rules stand at its head.
#ifndef LAZYCOW_QCOW2_DURABLE_SYNC_H
#define LAZYCOW_QCOW2_DURABLE_SYNC_H

#include <stdbool.h>

#include "qcow2/durable/sync_state.h"

struct image;

void sync_init(struct image *image);
void sync_free(struct sync *sync);

// Waits like sync_wait, but joins a running sync when nothing was written since that began. Returns
// 0 at once when everything is durable already.
int sync_flush(struct op *op);
// Called before the first change: clears autoclear bits of features that lazycow does not maintain.
// Returns 0 when they are durably off, or OP_PARKED.
int sync_drop_autoclear(struct op *op);
// Waits like sync_wait for a sync that also writes refcounts and clears the dirty bit. wait.result
// is -EBUSY when ops are in flight or clusters wait to be released.
int sync_clean(struct op *op);
// Returns an upper bound of the guest bytes that were answered and are not known to be durable: a
// byte that changes twice counts twice.
uint64_t sync_bytes_at_stake(const struct image *image);
// Returns true when memory has data or tables that the disk does not have.
bool sync_needed(const struct image *image);

#endif
