// SPDX-License-Identifier: Apache-2.0
// change.h: what every op that changes the image does before it plans.
#ifndef LAZYCOW_QCOW2_CHANGE_H
#define LAZYCOW_QCOW2_CHANGE_H

#include <stdbool.h>
#include <stdint.h>

struct image;
struct op;

// The first change: learns where metadata lies, clears autoclear bits that are not ours. Returns 0,
// OP_PARKED (plan again) or a negative errno.
int change_prepare(struct op *op);

// Before the mapping is changed: waits while recovery counts, or too many clusters are in
// quarantine. Returns 0, OP_PARKED (plan again), or a negative errno.
int change_mapping(struct op *op);

// Whether writing there would overwrite metadata: the image is then marked corrupt.
bool change_hits_metadata(struct image *image, uint64_t host_offset, uint64_t length);

#endif
