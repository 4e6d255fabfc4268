// SPDX-License-Identifier: Apache-2.0
// l2_table.h: gives an image an L2 table of its own: a new one where there is none, a copy of one
// that a snapshot shares.
#ifndef LAZYCOW_QCOW2_MAPPING_L2_TABLE_H
#define LAZYCOW_QCOW2_MAPPING_L2_TABLE_H

#include <stdint.h>

struct op;

// Returns 0 when the L1 entry has the COPIED flag, OP_PARKED (plan again), or a negative errno.
int l2_table_own(struct op *op, uint64_t l1_index);

#endif
