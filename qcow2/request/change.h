// SPDX-License-Identifier: Apache-2.0
// change.h: what every op that changes the image does before it plans.
#ifndef LAZYCOW_QCOW2_REQUEST_CHANGE_H
#define LAZYCOW_QCOW2_REQUEST_CHANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/format/entry.h"

struct image;
struct mapping;
struct op;

// The first change: learns where metadata lies, clears autoclear bits that are not ours. Returns 0,
// OP_PARKED (plan again) or a negative errno.
int change_prepare(struct op *op);

// Before the mapping is changed: waits while recovery counts, or too many clusters are in
// quarantine. Returns 0, OP_PARKED (plan again), or a negative errno.
int change_mapping(struct op *op);

// Links the clusters from host cluster first on to the guest clusters from op->pos on, all in one
// slice, as ENTRY_DATA or ENTRY_ZERO_ALLOCATED: the guest sees them from now on. The op's run is
// used up and its lock released. Returns 0, OP_PARKED (again, nothing was linked) or a negative
// errno.
int change_link(struct op *op, uint64_t first, uint64_t count, enum entry_kind kind);

// True when the refcounts that are known say of a cluster of m that it is not the guest's alone: its
// COPIED flag is wrong, and the cluster is not written in place.
bool change_contradicted(const struct image *image, const struct mapping *m);

#endif
