// SPDX-License-Identifier: Apache-2.0
// buffer_pool.h: payload buffers, kept between requests so that a busy server neither allocates nor
// faults pages in, and given back to the system when they lie idle.
#ifndef LAZYCOW_SERVER_BUFFER_POOL_H
#define LAZYCOW_SERVER_BUFFER_POOL_H

#include <stdbool.h>
#include <stddef.h>

// Alignment of every buffer, in bytes: what O_DIRECT asks for on any disk there is.
#define BUFFER_ALIGN 4096u
// Sizes are powers of two, from one page to the largest payload (32 MiB).
#define BUFFER_CLASS_MIN_BITS 12
#define BUFFER_CLASSES 14
#define BUFFER_BYTES_MAX ((size_t)BUFFER_ALIGN << (BUFFER_CLASSES - 1))

// The most that lies unused in the pool, in bytes: one connection's share, and the whole working
// set of a connection that keeps 256 requests of 256 KiB in flight.
#define BUFFER_POOL_KEEP (64u << 20)

struct buffer;

struct buffer_class {
    struct buffer *first; // unused ones, the last used first: its lines are still in the cache
    size_t count;
    size_t low; // fewest that were unused at any moment since the last tick
};

struct buffer_pool {
    struct buffer_class classes[BUFFER_CLASSES];
    size_t unused; // bytes
};

void buffer_pool_init(struct buffer_pool *pool);

// Frees what lies unused. Buffers in use must have been put back.
void buffer_pool_destroy(struct buffer_pool *pool);

// What a buffer for so many bytes takes, in bytes. bytes is 1 to BUFFER_BYTES_MAX.
size_t buffer_pool_size(size_t bytes);

// A buffer of at least bytes, its content undefined; NULL when there is no memory.
void *buffer_pool_get(struct buffer_pool *pool, size_t bytes);

// Puts a buffer back. bytes is what it was got for.
void buffer_pool_put(struct buffer_pool *pool, void *data, size_t bytes);

// To be called about once a second: frees the buffers that nobody needed since the last call.
// Returns whether some are left.
bool buffer_pool_tick(struct buffer_pool *pool);

#endif
