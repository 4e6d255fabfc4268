// SPDX-License-Identifier: Apache-2.0
// rng.h: the simulator's only source of randomness. Every decision of a run comes from its seed.
#ifndef LAZYCOW_TESTS_SIM_RNG_H
#define LAZYCOW_TESTS_SIM_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct rng {
    uint64_t state;
};

// A bijection that mixes all bits (the finalizer of splitmix64).
static inline uint64_t rng_mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static inline uint64_t rng_next(struct rng *rng)
{
    rng->state += 0x9e3779b97f4a7c15ull;
    return rng_mix(rng->state);
}

// Returns an independent stream, so that the draws of one part do not change those of another.
static inline struct rng rng_stream(uint64_t seed, uint64_t stream)
{
    return (struct rng){.state = rng_mix(seed + 0x632be59bd9b4e019ull * (stream + 1))};
}

// Returns 0 .. n - 1; n > 0.
static inline uint64_t rng_below(struct rng *rng, uint64_t n)
{
    return rng_next(rng) % n;
}

// Returns from .. to, both included.
static inline uint64_t rng_between(struct rng *rng, uint64_t from, uint64_t to)
{
    return from + rng_below(rng, to - from + 1);
}

static inline bool rng_percent(struct rng *rng, unsigned percent)
{
    return rng_below(rng, 100) < percent;
}

// Returns 1 .. n, small numbers as likely as large ones: each power of two has an equal share.
static inline uint64_t rng_scaled(struct rng *rng, uint64_t n)
{
    unsigned bits = 64 - (unsigned)__builtin_clzll(n);
    uint64_t value = 1 + rng_below(rng, 1ull << rng_below(rng, bits + 1));

    return value > n ? n : value;
}

#endif
