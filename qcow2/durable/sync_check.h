// SPDX-License-Identifier: Apache-2.0
// sync_check.h: the rules of a sync as assertions. The rules are at the head of sync.c; a stage that
// breaks one stops the program there, instead of a judge finding the damage a hundred requests later.
#ifndef LAZYCOW_QCOW2_DURABLE_SYNC_CHECK_H
#define LAZYCOW_QCOW2_DURABLE_SYNC_CHECK_H

#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/sync_state.h"

struct image;

// A sync begins that found this demand.
void sync_facts_begin(struct sync_facts *facts, struct sync_demand demand);
// A barrier has ended well.
void sync_facts_barrier(struct sync_facts *facts);

// Asserts what the rules say when the sync enters a stage. result is how the I/O before it ended.
void assert_sync_state(const struct image *image, enum sync_state state, int result);

#endif
