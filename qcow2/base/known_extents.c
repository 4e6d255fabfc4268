// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/known_extents.h"

#include <string.h>

// Returns the index of the first extent that ends behind offset.
static size_t known_extents_search(const struct known_extents *known, uint64_t offset)
{
    size_t low = 0, high = known->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (known->extents[middle].end > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static void move(struct known_extents *known, size_t to, size_t from)
{
    memmove(&known->extents[to], &known->extents[from],
            (known->count - from) * sizeof(known->extents[0]));
    known->count += to - from;
}

// Removes [begin, end) from the middle of the extent at index. The extent becomes two; when the
// array is full only the larger one is kept.
static void split(struct known_extents *known, size_t index, uint64_t begin, uint64_t end)
{
    struct known_extent *k = &known->extents[index];

    if (known->count < KNOWN_EXTENTS_MAX) {
        move(known, index + 1, index);
        k[1].begin = end;
        k[0].end = begin;
    } else if (begin - k->begin > k->end - end) {
        k->end = begin;
    } else {
        k->begin = end;
    }
}

static void forget(struct known_extents *known, uint64_t begin, uint64_t end)
{
    size_t first = known_extents_search(known, begin);

    if (first == known->count || known->extents[first].begin >= end)
        return;
    if (known->extents[first].begin < begin) {
        if (known->extents[first].end > end) {
            split(known, first, begin, end);
            return;
        }
        known->extents[first++].end = begin;
    }
    size_t behind = known_extents_search(known, end);
    if (behind < known->count && known->extents[behind].begin < end)
        known->extents[behind].begin = end;
    move(known, first, behind);
}

static void learn(struct known_extents *known, uint64_t begin, uint64_t end,
                  enum file_extent_kind kind)
{
    forget(known, begin, end);

    size_t index = known_extents_search(known, begin);
    struct known_extent *k = &known->extents[index];
    if (index > 0 && k[-1].end == begin && k[-1].kind == kind) {
        k[-1].end = end;
    } else if (index < known->count && k->begin == end && k->kind == kind) {
        k->begin = begin;
    } else {
        move(known, index + 1, index);
        *k = (struct known_extent){begin, end, kind};
    }
}

bool known_extents_find(const struct known_extents *known, uint64_t offset, uint64_t *length,
                        enum file_extent_kind *kind)
{
    const struct known_extent *k = &known->extents[known_extents_search(known, offset)];

    if (k == &known->extents[known->count] || k->begin > offset)
        return false;
    *kind = k->kind;
    if (*length > k->end - offset)
        *length = k->end - offset;
    return true;
}

void known_extents_ask(struct known_extents *known, uint64_t offset)
{
    known->asking = true;
    known->asked = offset;
    known->valid_end = UINT64_MAX;
}

void known_extents_changed(struct known_extents *known, uint64_t begin, uint64_t end)
{
    begin -= begin % KNOWN_EXTENTS_BLOCK;
    if (end % KNOWN_EXTENTS_BLOCK != 0)
        end = end < UINT64_MAX - KNOWN_EXTENTS_BLOCK
                  ? end + KNOWN_EXTENTS_BLOCK - end % KNOWN_EXTENTS_BLOCK
                  : UINT64_MAX;
    forget(known, begin, end);
    if (known->asking && end > known->asked && begin < known->valid_end)
        known->valid_end = begin > known->asked ? begin : known->asked;
}

// Remembers the answer up to the first byte that has changed since the question.
void known_extents_answer(struct known_extents *known, const struct file_extent *answer,
                          size_t count)
{
    uint64_t begin = known->asked;
    uint64_t told = begin;

    known->asking = false;
    // The answer's first extent may split a known one, and each extent of the answer may add one.
    if (known->count + count + 1 > KNOWN_EXTENTS_MAX) {
        known->count = 0;
        known->coarse = true;
    }
    for (size_t i = 0; i < count && begin < known->valid_end; i++) {
        told += answer[i].length;
        uint64_t end = told - told % KNOWN_EXTENTS_SECTOR;
        if (answer[i].kind == FILE_EXTENT_DATA && end < told)
            end += KNOWN_EXTENTS_SECTOR;
        if (end > known->valid_end)
            end = known->valid_end;
        if (end <= begin)
            continue;
        learn(known, begin, end, answer[i].kind);
        begin = end;
    }
}
