// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/pattern.h"

#include <stdio.h>
#include <string.h>

#include "tests/sim/rng.h"

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
        uint64_t bytes = word(value, guest / PATTERN_WORD);
        size_t at = guest % PATTERN_WORD;
        size_t n = PATTERN_WORD - at < length ? PATTERN_WORD - at : length;

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

// No guest disk here is larger, so other bytes hardly look like a stamp.
#define GUEST_MAX (1ull << 33)

bool pattern_is_zeros(const void *bytes)
{
    static const unsigned char zeros[PATTERN_WORD];

    return memcmp(bytes, zeros, PATTERN_WORD) == 0;
}

static uint64_t stamp(const void *bytes)
{
    uint64_t found;

    memcpy(&found, bytes, sizeof(found));
    return unmix(found);
}

bool pattern_place(const void *bytes, uint64_t *guest)
{
    *guest = (stamp(bytes) & ((1ull << PLACE_BITS) - 1)) * PATTERN_WORD;
    return !pattern_is_zeros(bytes) && *guest < GUEST_MAX;
}

void pattern_describe(const void *bytes, char *text)
{
    uint64_t guest, found;

    memcpy(&found, bytes, sizeof(found));
    if (pattern_is_zeros(bytes))
        snprintf(text, PATTERN_TEXT, "zeros");
    else if (pattern_place(bytes, &guest))
        snprintf(text, PATTERN_TEXT, "value %u of guest offset %llu",
                 (unsigned)(stamp(bytes) >> PLACE_BITS), (unsigned long long)guest);
    else
        snprintf(text, PATTERN_TEXT, "bytes of no write: %016llx", (unsigned long long)found);
}
