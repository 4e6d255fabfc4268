// SPDX-License-Identifier: Apache-2.0
// change.h: steps that every op takes before it changes the image or its mapping.
#ifndef LAZYCOW_QCOW2_REQUEST_CHANGE_H
#define LAZYCOW_QCOW2_REQUEST_CHANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/format/entry.h"

struct image;
struct mapping;
struct op;

// Before the first change: learns where metadata lies, and clears autoclear bits of features that
// lazycow does not maintain. Returns 0, OP_PARKED (plan again) or a negative errno.
int change_prepare(struct op *op);

// Before a change of the mapping: waits while recovery counts, or while the quarantine is full.
// Returns 0, OP_PARKED (plan again), or a negative errno.
int change_mapping(struct op *op);

// Links the host clusters from first on to the guest clusters from op->pos on, all in one slice, as
// ENTRY_DATA or ENTRY_ZERO_ALLOCATED: the guest sees them from now on. The op then holds no run and
// no lock. Returns 0, or OP_PARKED or a negative errno with nothing linked.
int change_link(struct op *op, uint64_t first, uint64_t count, enum entry_kind kind);

// Returns true when known refcounts contradict the COPIED flag of a cluster of m. Such a cluster is
// not written in place.
bool change_contradicted(const struct image *image, const struct mapping *m);

#endif
