// SPDX-License-Identifier: Apache-2.0
// reclaim.h: lets an op that found no space wait while given-up clusters are becoming free.
#ifndef LAZYCOW_QCOW2_SPACE_RECLAIM_H
#define LAZYCOW_QCOW2_SPACE_RECLAIM_H

struct op;

// Most syncs that an op waits for. The first one frees the clusters that were given up. The next
// two see the holes punched, which gives the host room.
#define RECLAIM_WAITS 3

// Called when alloc_clusters has returned -ENOSPC. Returns OP_PARKED (plan again), or -ENOSPC when
// no cluster is becoming free.
int reclaim_wait(struct op *op);

#endif
