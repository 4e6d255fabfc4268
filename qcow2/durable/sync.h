// SPDX-License-Identifier: Apache-2.0
// sync.h: makes what was written durable. The only module that orders writes and barriers; the
// rules are at the head of sync.c.
#ifndef LAZYCOW_QCOW2_DURABLE_SYNC_H
#define LAZYCOW_QCOW2_DURABLE_SYNC_H

#include <stdbool.h>

#include "qcow2/durable/sync_state.h"

struct image;

void sync_init(struct image *image);
void sync_free(struct sync *sync);

// As sync_wait, but a sync that already runs will do if nothing was written since it began, and
// nothing at all has to be done where nothing is new: then returns 0.
int sync_flush(struct op *op);
// Before the first change: autoclear bits of features that are not kept up go off. Returns 0 when
// they are, or OP_PARKED.
int sync_drop_autoclear(struct op *op);
// As sync_wait, and then refcounts are written and the dirty bit is cleared. wait.result is -EBUSY
// where ops are in flight or clusters wait to be released.
int sync_clean(struct op *op);
// Guest bytes that were answered and are not known to be durable, at most: what is changed twice counts
// twice.
uint64_t sync_bytes_at_stake(const struct image *image);
// Whether memory has anything that disk has not.
bool sync_needed(const struct image *image);

#endif
