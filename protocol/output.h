// SPDX-License-Identifier: Apache-2.0
// output.h: queues output in order: small pieces copied into an arena, payload by reference.
#ifndef LAZYCOW_PROTOCOL_OUTPUT_H
#define LAZYCOW_PROTOCOL_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "protocol/session_types.h"

struct output_block;

// A run of bytes that is sent with one iovec. ref is NULL when the bytes are in the arena.
struct output_piece {
    const uint8_t *data;
    // Bytes that are not sent yet. 0 only where a reference is held without payload.
    size_t length;
    struct session_payload_ref *ref;
};

struct output {
    // A ring; capacity is a power of two.
    struct output_piece *pieces;
    size_t capacity;
    size_t head;
    size_t count;
    // The arena: filled at the last block, emptied at the first.
    struct output_block *first;
    struct output_block *last;
    struct output_block *spare;
    size_t bytes;  // copied and payload bytes that are not sent yet
    size_t copied; // of these bytes, those in the arena
    // References that could not be queued without memory.
    struct session_payload_ref *orphans;
    // Memory ran out: the stream has a gap, and nothing more may be sent.
    bool failed;
};

// Returns false without memory.
bool output_init(struct output *out);
// Releases the references that are not sent yet, and frees the queue.
void output_free(struct output *out);

// A reply is queued in two steps, so that it fails only as a whole. output_carve() reserves bytes
// (> 0) of the arena and as many pieces; then output_copied() and output_payload() queue pieces of
// that room and of payload in the order of the stream. output_carve() returns NULL and sets failed
// without memory.
uint8_t *output_carve(struct output *out, size_t bytes, size_t pieces);

// Queues length bytes of the carved room. The caller queues all of the room, from its start to its
// end.
void output_copied(struct output *out, const uint8_t *data, size_t length);

// Queues payload that belongs to ref. length 0 holds ref until everything queued before it is sent.
void output_payload(struct output *out, const void *data, size_t length,
                    struct session_payload_ref *ref);

// Keeps a reference that could not be queued until output_free().
void output_orphan(struct output *out, struct session_payload_ref *ref);

int output_iovecs(const struct output *out, struct iovec *iov, int max);
// Does the work of session_settle().
bool output_settle(struct output *out);
// bytes (at most out->bytes) were sent from the front. Runs release functions, which may queue
// output.
void output_sent(struct output *out, size_t bytes);

#endif
