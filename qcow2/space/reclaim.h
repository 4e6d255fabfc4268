// SPDX-License-Identifier: Apache-2.0
// reclaim.h: an op that found no space, while clusters that were given up are on their way to become
// free.
#ifndef LAZYCOW_QCOW2_SPACE_RECLAIM_H
#define LAZYCOW_QCOW2_SPACE_RECLAIM_H

struct op;

// How often an op waits for a sync: the first one frees what was given up, the next two see the
// holes punched, which gives the host room.
#define RECLAIM_WAITS 3

// To be called when alloc_clusters has answered -ENOSPC. Returns OP_PARKED (plan again), or -ENOSPC
// where nothing is on its way.
int reclaim_wait(struct op *op);

#endif
