// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/memory.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct memory_page {
    unsigned references;
    unsigned char bytes[MEMORY_PAGE_BYTES];
};

static void page_drop(struct memory_page *page)
{
    if (page && --page->references == 0)
        free(page);
}

void memory_init(struct memory *m)
{
    *m = (struct memory){0};
}

void memory_free(struct memory *m)
{
    for (size_t i = 0; i < m->page_count; i++)
        page_drop(m->pages[i]);
    free(m->pages);
    memory_init(m);
}

void memory_copy(struct memory *to, const struct memory *from)
{
    *to = *from;
    to->pages = malloc((from->page_count + 1) * sizeof(*to->pages));
    if (!to->pages)
        abort();
    if (from->page_count > 0)
        memcpy(to->pages, from->pages, from->page_count * sizeof(*to->pages));
    for (size_t i = 0; i < to->page_count; i++) {
        if (to->pages[i])
            to->pages[i]->references++;
    }
}

// Returns a page that no copy shares, made if there is none.
static struct memory_page *page_own(struct memory *m, uint64_t index)
{
    if (index >= m->page_count) {
        size_t count = (size_t)index + 1 + m->page_count / 2;
        struct memory_page **pages = realloc(m->pages, count * sizeof(*pages));

        if (!pages)
            abort();
        memset(pages + m->page_count, 0, (count - m->page_count) * sizeof(*pages));
        m->pages = pages;
        m->page_count = count;
    }

    struct memory_page *page = m->pages[index];
    if (page && page->references == 1)
        return page;
    struct memory_page *own = page ? malloc(sizeof(*own)) : calloc(1, sizeof(*own));
    if (!own)
        abort();
    if (page)
        memcpy(own->bytes, page->bytes, sizeof(own->bytes));
    own->references = 1;
    page_drop(page);
    m->pages[index] = own;
    return own;
}

static const struct memory_page *page_at(const struct memory *m, uint64_t index)
{
    return index < m->page_count ? m->pages[index] : NULL;
}

void memory_resize(struct memory *m, uint64_t size)
{
    assert(size <= MEMORY_BYTES_MAX);
    if (size < m->size)
        memory_zero(m, size, m->size - size);
    m->size = size;
}

void memory_read(const struct memory *m, void *buf, uint64_t offset, size_t length)
{
    unsigned char *to = buf;

    while (length > 0) {
        size_t at = offset % MEMORY_PAGE_BYTES;
        size_t n = MEMORY_PAGE_BYTES - at < length ? MEMORY_PAGE_BYTES - at : length;
        const struct memory_page *page = page_at(m, offset / MEMORY_PAGE_BYTES);

        if (page)
            memcpy(to, page->bytes + at, n);
        else
            memset(to, 0, n);
        to += n;
        offset += n;
        length -= n;
    }
}

static uint64_t within(const struct memory *m, uint64_t offset, uint64_t length)
{
    if (offset >= m->size)
        return 0;
    return length < m->size - offset ? length : m->size - offset;
}

void memory_write(struct memory *m, const void *buf, uint64_t offset, size_t length)
{
    const unsigned char *from = buf;

    length = (size_t)within(m, offset, length);
    while (length > 0) {
        size_t at = offset % MEMORY_PAGE_BYTES;
        size_t n = MEMORY_PAGE_BYTES - at < length ? MEMORY_PAGE_BYTES - at : length;

        memcpy(page_own(m, offset / MEMORY_PAGE_BYTES)->bytes + at, from, n);
        from += n;
        offset += n;
        length -= n;
    }
}

void memory_zero(struct memory *m, uint64_t offset, uint64_t length)
{
    length = within(m, offset, length);
    while (length > 0) {
        size_t at = offset % MEMORY_PAGE_BYTES;
        uint64_t n = MEMORY_PAGE_BYTES - at < length ? MEMORY_PAGE_BYTES - at : length;
        uint64_t index = offset / MEMORY_PAGE_BYTES;

        if (n == MEMORY_PAGE_BYTES && page_at(m, index)) {
            page_drop(m->pages[index]);
            m->pages[index] = NULL;
        } else if (page_at(m, index)) {
            memset(page_own(m, index)->bytes + at, 0, n);
        }
        offset += n;
        length -= n;
    }
}

bool memory_hole(const struct memory *m, uint64_t offset, uint64_t *length)
{
    uint64_t index = offset / MEMORY_PAGE_BYTES;
    bool hole = !page_at(m, index);
    uint64_t end = index;

    while (end * MEMORY_PAGE_BYTES < m->size && !page_at(m, end) == hole)
        end++;
    *length = within(m, offset, end * MEMORY_PAGE_BYTES - offset);
    return hole;
}
