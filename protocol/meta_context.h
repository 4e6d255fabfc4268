// SPDX-License-Identifier: Apache-2.0
// meta_context.h: lists and selects metadata contexts ("Metadata querying").
#ifndef LAZYCOW_PROTOCOL_META_CONTEXT_H
#define LAZYCOW_PROTOCOL_META_CONTEXT_H

#include <stdint.h>

#include "protocol/cursor.h"
#include "protocol/state.h"

// Number of contexts that lazycow knows.
#define META_CONTEXT_COUNT 2u

// Answers NBD_OPT_LIST_META_CONTEXT or NBD_OPT_SET_META_CONTEXT.
void meta_context_take(struct session *s, uint32_t option, struct cursor data);

// Deselects all contexts, as NBD_OPT_SET_META_CONTEXT does first, even when it fails.
void meta_context_forget(struct session *s);

// Returns the id, not 0, that stands for a context (one SESSION_CONTEXT_* bit) on the wire.
uint32_t meta_context_id(unsigned context);

// Returns the context of an id, 0 for an unknown id.
unsigned meta_context_of_id(uint32_t id);

#endif
