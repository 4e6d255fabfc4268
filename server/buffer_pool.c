// SPDX-License-Identifier: Apache-2.0
#include "server/buffer_pool.h"

#include <assert.h>
#include <malloc.h>
#include <stdlib.h>
#include <sys/mman.h>

// Buffers from this size on have a mapping each, so that their memory returns to the system as soon
// as they are freed. Smaller ones come from malloc: there may be more of them than the mappings
// that a process may have.
#define BUFFER_MAPPED_BYTES (128u << 10)

// Freed bytes from which on malloc is asked to return pages to the system; below, the call costs
// more than it gains.
#define BUFFER_TRIM_BYTES (1u << 20)

// An unused buffer. The link is stored in the buffer's own bytes.
struct buffer {
    struct buffer *next;
};

static unsigned order_of(size_t bytes)
{
    unsigned order = 0;

    assert(bytes > 0 && bytes <= BUFFER_BYTES_MAX);
    while ((size_t)BUFFER_ALIGN << order < bytes) {
        order++;
    }
    return order;
}

static size_t order_bytes(unsigned order)
{
    return (size_t)BUFFER_ALIGN << order;
}

static void buffer_release(void *data, size_t size)
{
    if (size >= BUFFER_MAPPED_BYTES) {
        munmap(data, size);
    } else {
        free(data);
    }
}

// Frees up to count unused buffers of a class; returns the number of bytes freed.
static size_t order_shrink(struct buffer_pool *pool, unsigned order, size_t count)
{
    struct buffer_class *list = &pool->classes[order];
    size_t freed = 0;

    for (; count > 0 && list->first != NULL; count--) {
        struct buffer *buffer = list->first;

        list->first = buffer->next;
        list->count--;
        freed += order_bytes(order);
        buffer_release(buffer, order_bytes(order));
    }
    pool->unused -= freed;
    return freed;
}

void buffer_pool_init(struct buffer_pool *pool)
{
    *pool = (struct buffer_pool){0};
}

void buffer_pool_destroy(struct buffer_pool *pool)
{
    for (unsigned order = 0; order < BUFFER_CLASSES; order++) {
        order_shrink(pool, order, pool->classes[order].count);
    }
}

size_t buffer_pool_size(size_t bytes)
{
    return order_bytes(order_of(bytes));
}

void *buffer_pool_get(struct buffer_pool *pool, size_t bytes)
{
    unsigned order = order_of(bytes);
    struct buffer_class *list = &pool->classes[order];
    struct buffer *buffer = list->first;
    void *data;

    if (buffer != NULL) {
        list->first = buffer->next;
        list->count--;
        pool->unused -= order_bytes(order);
        if (list->count < list->low) {
            list->low = list->count;
        }
        return buffer;
    }
    list->low = 0;
    if (order_bytes(order) < BUFFER_MAPPED_BYTES) {
        return aligned_alloc(BUFFER_ALIGN, order_bytes(order));
    }
    data =
        mmap(NULL, order_bytes(order), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? NULL : data;
}

void buffer_pool_put(struct buffer_pool *pool, void *data, size_t bytes)
{
    unsigned order = order_of(bytes);
    struct buffer_class *list = &pool->classes[order];
    struct buffer *buffer = data;

    if (pool->unused + order_bytes(order) > BUFFER_POOL_KEEP) {
        buffer_release(data, order_bytes(order));
        return;
    }
    buffer->next = list->first;
    list->first = buffer;
    list->count++;
    pool->unused += order_bytes(order);
}

bool buffer_pool_tick(struct buffer_pool *pool)
{
    size_t freed = 0;

    for (unsigned order = 0; order < BUFFER_CLASSES; order++) {
        size_t bytes = order_shrink(pool, order, pool->classes[order].low);

        if (order_bytes(order) < BUFFER_MAPPED_BYTES) {
            freed += bytes;
        }
        pool->classes[order].low = pool->classes[order].count;
    }
    if (freed >= BUFFER_TRIM_BYTES) {
        malloc_trim(0);
    }
    return pool->unused > 0;
}
