// SPDX-License-Identifier: Apache-2.0
// refcount_array.h: refcounts in the format of a refcount block: 1 << order bits each, order 0..6.
// Big-endian; refcounts of less than a byte fill each byte from its low bits up. Format: qcow2
// specification, "Host cluster management".
#ifndef LAZYCOW_QCOW2_FORMAT_REFCOUNT_ARRAY_H
#define LAZYCOW_QCOW2_FORMAT_REFCOUNT_ARRAY_H

#include <stdint.h>

#include "qcow2/format/format.h"

// Returns the largest refcount of that width.
static inline uint64_t refcount_array_max(unsigned order)
{
    return order == 6 ? UINT64_MAX : (1ull << (1u << order)) - 1;
}

static inline uint64_t refcount_array_get(const uint8_t *array, unsigned order, uint64_t index)
{
    switch (order) {
    case 3:
        return array[index];
    case 4:
        return format_get16(array + index * 2);
    case 5:
        return format_get32(array + index * 4);
    case 6:
        return format_get64(array + index * 8);
    default: {
        uint64_t bit = index << order;
        return array[bit / 8] >> bit % 8 & refcount_array_max(order);
    }
    }
}

// count is at most refcount_array_max.
static inline void refcount_array_set(uint8_t *array, unsigned order, uint64_t index,
                                      uint64_t count)
{
    switch (order) {
    case 3:
        array[index] = (uint8_t)count;
        break;
    case 4:
        format_put16(array + index * 2, (uint16_t)count);
        break;
    case 5:
        format_put32(array + index * 4, (uint32_t)count);
        break;
    case 6:
        format_put64(array + index * 8, count);
        break;
    default: {
        uint64_t bit = index << order;
        uint8_t mask = (uint8_t)(refcount_array_max(order) << bit % 8);
        array[bit / 8] = (uint8_t)((array[bit / 8] & ~mask) | (count << bit % 8));
        break;
    }
    }
}

#endif
