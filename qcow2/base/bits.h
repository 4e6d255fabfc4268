// SPDX-License-Identifier: Apache-2.0
// bits.h: arrays of bits, 64 in a word.
#ifndef LAZYCOW_QCOW2_BASE_BITS_H
#define LAZYCOW_QCOW2_BASE_BITS_H

#include <stdbool.h>
#include <stdint.h>

#define BITS_WORD 64

// Number of 64-bit words that hold count bits.
static inline uint64_t bits_words(uint64_t count)
{
    return (count + BITS_WORD - 1) / BITS_WORD;
}

static inline bool bits_get(const uint64_t *bits, uint64_t i)
{
    return bits[i / BITS_WORD] >> (i % BITS_WORD) & 1;
}

static inline void bits_set(uint64_t *bits, uint64_t i)
{
    bits[i / BITS_WORD] |= 1ull << (i % BITS_WORD);
}

static inline void bits_clear(uint64_t *bits, uint64_t i)
{
    bits[i / BITS_WORD] &= ~(1ull << (i % BITS_WORD));
}

// Returns the first bit in [from, end) that is set (used) or clear (not used), or end if there is
// none.
static inline uint64_t bits_next(const uint64_t *bits, uint64_t from, uint64_t end, bool used)
{
    for (uint64_t i = from; i < end;) {
        uint64_t word = bits[i / BITS_WORD];

        word = (used ? word : ~word) >> (i % BITS_WORD);
        if (word != 0) {
            i += (uint64_t)__builtin_ctzll(word);
            return i < end ? i : end;
        }
        i = (i / BITS_WORD + 1) * BITS_WORD;
    }
    return end;
}

#endif
