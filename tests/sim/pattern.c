// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/pattern.h"

#include <stdio.h>
#include <string.h>

#include "tests/sim/rng.h"

#define WORD_BYTES 8u
#define PLACE_BITS 40
#define SECTOR_WORDS 64u

static uint64_t word(uint32_t value, uint64_t place)
{
    if (value == PATTERN_ZEROS)
        return 0;
    if (value & PATTERN_COMPRESSIBLE)
        place &= ~(uint64_t)(SECTOR_WORDS - 1);
    return rng_mix((uint64_t)value << PLACE_BITS | place);
}

void pattern_fill(void *buf, uint32_t value, uint64_t guest, size_t length)
{
    unsigned char *to = buf;

    if (value == PATTERN_ZEROS) {
        memset(buf, 0, length);
        return;
    }
    while (length > 0) {
        uint64_t bytes = word(value, guest / WORD_BYTES);
        size_t at = guest % WORD_BYTES;
        size_t n = WORD_BYTES - at < length ? WORD_BYTES - at : length;

        memcpy(to, (unsigned char *)&bytes + at, n);
        to += n;
        guest += n;
        length -= n;
    }
}

// Inverts rng_mix: the inverses of its steps, backwards.
static uint64_t unmix(uint64_t x)
{
    x ^= x >> 31 ^ x >> 62;
    x *= 0x319642b2d24d8ec3ull;
    x ^= x >> 27 ^ x >> 54;
    x *= 0x96de1b173f119089ull;
    return x ^ x >> 30 ^ x >> 60;
}

void pattern_describe(const void *bytes, char *text)
{
    uint64_t found;

    memcpy(&found, bytes, sizeof(found));
    uint64_t plain = unmix(found);
    uint64_t guest = (plain & ((1ull << PLACE_BITS) - 1)) * WORD_BYTES;
    // No guest disk here is larger, so other bytes hardly look like a stamp.
    if (found == 0)
        snprintf(text, PATTERN_TEXT, "zeros");
    else if (guest < 1ull << 33)
        snprintf(text, PATTERN_TEXT, "value %u of guest offset %llu",
                 (unsigned)(plain >> PLACE_BITS), (unsigned long long)guest);
    else
        snprintf(text, PATTERN_TEXT, "bytes of no write: %016llx", (unsigned long long)found);
}
