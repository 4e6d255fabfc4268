// SPDX-License-Identifier: Apache-2.0
// output.c: the queue of output.
//
// The ring of pieces is the stream. Copied bytes lie in blocks that are filled, and so emptied, in
// the order of the stream. A block is free again when all bytes that were carved from it are sent;
// no piece has to know its block.
#include "protocol/output.h"

#include <assert.h>
#include <stdlib.h>

// Size of an arena block in bytes: 800 headers of structured replies. A larger reply gets a larger
// block.
#define OUTPUT_BLOCK_SIZE (16u << 10)
// Initial capacity of the ring: 32 read replies of a header and a payload.
#define OUTPUT_PIECES_MIN 64u

struct output_block {
    struct output_block *next;
    size_t size; // bytes of data
    size_t used; // carved
    size_t sent;
    uint8_t data[];
};

bool output_init(struct output *out)
{
    *out = (struct output){.capacity = OUTPUT_PIECES_MIN};
    out->pieces = malloc(out->capacity * sizeof(*out->pieces));
    return out->pieces != NULL;
}

static void output_let_go(struct session_payload_ref *ref)
{
    assert(ref->pieces > 0);
    ref->pieces--;
    if (ref->pieces == 0)
        ref->release(ref);
}

static void free_blocks(struct output_block *block)
{
    while (block != NULL) {
        struct output_block *next = block->next;
        free(block);
        block = next;
    }
}

void output_free(struct output *out)
{
    while (out->count > 0) {
        struct session_payload_ref *ref = out->pieces[out->head].ref;
        out->head = (out->head + 1) & (out->capacity - 1);
        out->count--;
        if (ref != NULL)
            output_let_go(ref);
    }
    while (out->orphans != NULL) {
        struct session_payload_ref *ref = out->orphans;
        out->orphans = ref->next;
        output_let_go(ref);
    }
    free(out->pieces);
    free_blocks(out->first);
    free_blocks(out->spare);
}

static bool grow_ring(struct output *out, size_t pieces)
{
    size_t capacity = out->capacity;
    while (capacity - out->count < pieces)
        capacity *= 2;
    if (capacity == out->capacity)
        return true;
    struct output_piece *ring = malloc(capacity * sizeof(*ring));
    if (ring == NULL)
        return false;
    for (size_t i = 0; i < out->count; i++)
        ring[i] = out->pieces[(out->head + i) & (out->capacity - 1)];
    free(out->pieces);
    out->pieces = ring;
    out->capacity = capacity;
    out->head = 0;
    return true;
}

static bool add_block(struct output *out, size_t bytes)
{
    struct output_block *block = out->spare;
    if (block != NULL && block->size >= bytes) {
        out->spare = NULL;
    } else {
        size_t size = bytes > OUTPUT_BLOCK_SIZE ? bytes : OUTPUT_BLOCK_SIZE;
        block = malloc(sizeof(*block) + size);
        if (block == NULL)
            return false;
        block->size = size;
    }
    block->next = NULL;
    block->used = 0;
    block->sent = 0;
    if (out->last != NULL)
        out->last->next = block;
    else
        out->first = block;
    out->last = block;
    return true;
}

uint8_t *output_carve(struct output *out, size_t bytes, size_t pieces)
{
    assert(bytes > 0);
    if (out->failed)
        return NULL;
    bool room = out->last != NULL && out->last->size - out->last->used >= bytes;
    if (!grow_ring(out, pieces) || (!room && !add_block(out, bytes))) {
        out->failed = true;
        return NULL;
    }
    uint8_t *data = out->last->data + out->last->used;
    out->last->used += bytes;
    return data;
}

static struct output_piece *output_add_piece(struct output *out)
{
    assert(out->count < out->capacity);
    struct output_piece *piece = &out->pieces[(out->head + out->count) & (out->capacity - 1)];
    out->count++;
    return piece;
}

void output_copied(struct output *out, const uint8_t *data, size_t length)
{
    out->bytes += length;
    out->copied += length;
    if (out->count > 0) {
        struct output_piece *last =
            &out->pieces[(out->head + out->count - 1) & (out->capacity - 1)];
        if (last->ref == NULL && last->data + last->length == data) {
            last->length += length;
            return;
        }
    }
    *output_add_piece(out) = (struct output_piece){.data = data, .length = length};
}

void output_payload(struct output *out, const void *data, size_t length,
                    struct session_payload_ref *ref)
{
    out->bytes += length;
    ref->pieces++;
    *output_add_piece(out) = (struct output_piece){.data = data, .length = length, .ref = ref};
}

void output_orphan(struct output *out, struct session_payload_ref *ref)
{
    assert(out->failed);
    ref->pieces = 1;
    ref->next = out->orphans;
    out->orphans = ref;
}

int output_iovecs(const struct output *out, struct iovec *iov, int max)
{
    int n = 0;
    if (out->failed)
        return 0;
    for (size_t i = 0; i < out->count && n < max; i++) {
        const struct output_piece *piece = &out->pieces[(out->head + i) & (out->capacity - 1)];
        if (piece->length == 0)
            continue;
        iov[n].iov_base = (void *)(uintptr_t)piece->data;
        iov[n].iov_len = piece->length;
        n++;
    }
    return n;
}

bool output_settle(struct output *out)
{
    for (size_t i = 0; i < out->count; i++) {
        struct output_piece *piece = &out->pieces[(out->head + i) & (out->capacity - 1)];
        if (piece->ref == NULL || piece->length == 0)
            continue;
        piece->data = piece->ref->settle(piece->ref, piece->data, piece->length);
        if (piece->data == NULL)
            return false;
    }
    return true;
}

static void arena_sent(struct output *out, size_t bytes)
{
    out->copied -= bytes;
    while (bytes > 0) {
        struct output_block *block = out->first;
        size_t n = block->used - block->sent;
        if (n > bytes)
            n = bytes;
        block->sent += n;
        bytes -= n;
        if (block->sent < block->used)
            return;
        if (block == out->last && block->size == OUTPUT_BLOCK_SIZE) {
            block->used = 0;
            block->sent = 0;
            return;
        }
        out->first = block->next;
        if (out->first == NULL)
            out->last = NULL;
        if (out->spare == NULL && block->size == OUTPUT_BLOCK_SIZE) {
            block->next = NULL;
            out->spare = block;
        } else {
            free(block);
        }
    }
}

void output_sent(struct output *out, size_t bytes)
{
    assert(bytes <= out->bytes);
    out->bytes -= bytes;
    while (out->count > 0) {
        struct output_piece *piece = &out->pieces[out->head];
        size_t n = bytes < piece->length ? bytes : piece->length;
        struct session_payload_ref *ref = piece->ref;
        // A reference that is held without payload has no data.
        if (n > 0)
            piece->data += n;
        piece->length -= n;
        bytes -= n;
        bool whole = piece->length == 0;
        if (whole) {
            out->head = (out->head + 1) & (out->capacity - 1);
            out->count--;
        }
        if (ref == NULL)
            arena_sent(out, n);
        else if (whole)
            output_let_go(ref);
        if (!whole)
            return;
    }
}
