// SPDX-License-Identifier: Apache-2.0
// meta_context.h: metadata contexts, listed and selected ("Metadata querying").
#ifndef LAZYCOW_PROTOCOL_META_CONTEXT_H
#define LAZYCOW_PROTOCOL_META_CONTEXT_H

#include <stdint.h>

#include "protocol/cursor.h"
#include "protocol/state.h"

// How many there are.
#define META_CONTEXT_COUNT 2u

// Answers LIST_META_CONTEXT or SET_META_CONTEXT.
void meta_context_take(struct session *s, uint32_t option, struct cursor data);

// Selects nothing: what SET_META_CONTEXT begins with, even when it fails.
void meta_context_forget(struct session *s);

// The id that stands for a context, one SESSION_CONTEXT_* bit, on the wire. Not 0.
uint32_t meta_context_id(unsigned context);

// The context of an id, 0 where there is none.
unsigned meta_context_of_id(uint32_t id);

#endif
