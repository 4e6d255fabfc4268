// SPDX-License-Identifier: Apache-2.0
// l2_table.h: making an L2 table one's own: a new one where there is none, a copy of one that a
// snapshot shares.
#ifndef LAZYCOW_QCOW2_MAPPING_L2_TABLE_H
#define LAZYCOW_QCOW2_MAPPING_L2_TABLE_H

#include <stdint.h>

struct op;

// After it returned 0 the L1 entry has the COPIED flag. Else OP_PARKED (plan again) or a negative
// errno.
int l2_table_own(struct op *op, uint64_t l1_index);

#endif
