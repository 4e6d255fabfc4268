// SPDX-License-Identifier: Apache-2.0
// memory.h: the bytes of a simulated file, sparse, in pages that copies share until one of them
// changes: keeping the state of a disk at several moments costs next to nothing.
#ifndef LAZYCOW_TESTS_SIM_MEMORY_H
#define LAZYCOW_TESTS_SIM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMORY_PAGE_BYTES 4096u
// Largest file in bytes. An image that grows beyond it has a fault.
#define MEMORY_BYTES_MAX (4ull << 30)

struct memory_page;

struct memory {
    struct memory_page **pages; // NULL: zeros
    size_t page_count;
    uint64_t size; // bytes; all beyond reads as zeros
};

void memory_init(struct memory *m);
void memory_free(struct memory *m);
// Copies from into to, which is initialized here.
void memory_copy(struct memory *to, const struct memory *from);
// Bytes that are cut off read as zeros when the file grows again. size <= MEMORY_BYTES_MAX.
void memory_resize(struct memory *m, uint64_t size);
void memory_read(const struct memory *m, void *buf, uint64_t offset, size_t length);
// Drops bytes at and beyond the size.
void memory_write(struct memory *m, const void *buf, uint64_t offset, size_t length);
// Writes zeros like memory_write; frees whole pages.
void memory_zero(struct memory *m, uint64_t offset, uint64_t length);
// Returns true when nothing is stored at offset. Sets *length to the bytes for which that stays so,
// at most to the end.
bool memory_hole(const struct memory *m, uint64_t offset, uint64_t *length);

#endif
