// SPDX-License-Identifier: Apache-2.0
// buffer_pool.h: payload buffers. They are kept between requests, so that a busy server neither
// allocates nor takes page faults, and returned to the system when they stay unused.
#ifndef LAZYCOW_SERVER_BUFFER_POOL_H
#define LAZYCOW_SERVER_BUFFER_POOL_H

#include <stdbool.h>
#include <stddef.h>

// Alignment of every buffer, in bytes: enough for O_DIRECT on any disk.
#define BUFFER_ALIGN 4096u
// Sizes are powers of two, from one page to the largest payload (32 MiB).
#define BUFFER_CLASS_MIN_BITS 12
#define BUFFER_CLASSES 14
#define BUFFER_BYTES_MAX ((size_t)BUFFER_ALIGN << (BUFFER_CLASSES - 1))

// Most bytes that are kept unused in the pool: one connection's share, which is also the working
// set of a connection with 256 requests of 256 KiB in flight.
#define BUFFER_POOL_KEEP (64u << 20)

struct buffer;

struct buffer_class {
    // Unused buffers, the last used first, since its bytes are still in the CPU's cache.
    struct buffer *first;
    size_t count;
    // Fewest unused buffers at any moment since the last tick.
    size_t low;
};

struct buffer_pool {
    struct buffer_class classes[BUFFER_CLASSES];
    size_t unused; // bytes
};

void buffer_pool_init(struct buffer_pool *pool);

// Frees the unused buffers. All buffers in use must have been put back.
void buffer_pool_destroy(struct buffer_pool *pool);

// Bytes of memory that a buffer for that many bytes takes. bytes is 1 to BUFFER_BYTES_MAX.
size_t buffer_pool_size(size_t bytes);

// Returns a buffer of at least bytes, its content undefined; NULL when there is no memory.
void *buffer_pool_get(struct buffer_pool *pool, size_t bytes);

// Puts a buffer back. bytes is the size that was asked for when it was taken.
void buffer_pool_put(struct buffer_pool *pool, void *data, size_t bytes);

// Called about once a second: frees the buffers that stayed unused since the last call. Returns
// true while some are left.
bool buffer_pool_tick(struct buffer_pool *pool);

#endif
