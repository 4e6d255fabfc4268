// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/heap.h"

#include <errno.h>
#include <stddef.h>

// Names that the linker gives to the real functions.
void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
int __real_posix_memalign(void **out, size_t alignment, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes);

// There is only one heap and one thread.
static struct {
    bool inside;
    uint64_t number;
    uint64_t first;
    uint64_t count;
    uint64_t failed;
} heap;

void heap_begin(uint64_t first, uint64_t count)
{
    heap.inside = false;
    heap.number = heap.failed = 0;
    heap.first = first;
    heap.count = count;
}

uint64_t heap_failed(void)
{
    return heap.failed;
}

bool heap_enter(bool inside)
{
    bool before = heap.inside;

    heap.inside = inside;
    return before;
}

static bool fails(void)
{
    if (!heap.inside || heap.count == 0)
        return false;
    uint64_t number = heap.number++;
    if (number < heap.first || number - heap.first >= heap.count)
        return false;
    heap.failed++;
    return true;
}

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return fails() ? NULL : __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    return fails() ? NULL : __real_realloc(old, bytes);
}

int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes)
{
    return fails() ? ENOMEM : __real_posix_memalign(out, alignment, bytes);
}
