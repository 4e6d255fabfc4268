// SPDX-License-Identifier: Apache-2.0
// output.h: what is to be sent, in order: small pieces copied into an arena, payload by reference.
#ifndef LAZYCOW_PROTOCOL_OUTPUT_H
#define LAZYCOW_PROTOCOL_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "protocol/session_types.h"

struct output_block;

// A run of bytes that is sent with one iovec. ref is NULL where the bytes are in the arena.
struct output_piece {
    const uint8_t *data;
    size_t length; // bytes not sent yet; 0 only where a reference is held without payload
    struct session_payload_ref *ref;
};

struct output {
    struct output_piece *pieces; // a ring, capacity is a power of two
    size_t capacity;
    size_t head;
    size_t count;
    struct output_block *first; // arena: filled at the last block, emptied at the first
    struct output_block *last;
    struct output_block *spare;
    size_t bytes;                        // not sent yet, of both kinds
    size_t copied;                       // of these, in the arena
    struct session_payload_ref *orphans; // never queued, for want of memory
    bool failed; // memory ran out: the stream has a gap, nothing more may be sent
};

// False when there is no memory.
bool output_init(struct output *out);
// Releases the references that were not sent yet.
void output_free(struct output *out);

// One reply is queued in two steps, so that it can only fail as a whole: output_carve() finds room
// for bytes of the arena and for as many pieces, then output_copied() and output_payload() queue
// pieces of that room and of payload in the order of the stream. Returns NULL and sets failed when
// there is no memory. bytes > 0.
uint8_t *output_carve(struct output *out, size_t bytes, size_t pieces);

// Queues length bytes of the carved room; all of it must be queued, from its start to its end.
void output_copied(struct output *out, const uint8_t *data, size_t length);

// Queues payload that belongs to ref. length 0 holds ref until everything before it was sent.
void output_payload(struct output *out, const void *data, size_t length,
                    struct session_payload_ref *ref);

// Keeps a reference that could not be queued until output_free().
void output_orphan(struct output *out, struct session_payload_ref *ref);

int output_iovecs(const struct output *out, struct iovec *iov, int max);
// As session_settle().
bool output_settle(struct output *out);
// At most out->bytes. Runs release functions; these may queue output.
void output_sent(struct output *out, size_t bytes);

#endif
