// SPDX-License-Identifier: Apache-2.0
// sync_check.h: the rules of a sync as assertions. The rules stand at the head of sync.c. A stage
// that breaks a rule stops the program there, before a test finds the damage a hundred requests
// later.
#ifndef LAZYCOW_QCOW2_DURABLE_SYNC_CHECK_H
#define LAZYCOW_QCOW2_DURABLE_SYNC_CHECK_H

#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/sync_state.h"

struct image;

// A sync with this demand begins.
void sync_facts_begin(struct sync_facts *facts, struct sync_demand demand);
// A barrier has succeeded.
void sync_facts_barrier(struct sync_facts *facts);

// Asserts the rules that hold when the sync enters a stage. result: 0 or the error of the I/O
// before the stage.
void assert_sync_state(const struct image *image, enum sync_state state, int result);

#endif
