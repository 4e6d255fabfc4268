// SPDX-License-Identifier: Apache-2.0
// load_plan.h: plans the requests of the load generator: a mix of kinds, and their places.
#ifndef LAZYCOW_TESTS_LOAD_PLAN_H
#define LAZYCOW_TESTS_LOAD_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Kinds of requests, as --mix names them.
enum load_kind {
    LOAD_READ,
    LOAD_WRITE,
    LOAD_FUA, // a write with FUA
    LOAD_ZERO,
    LOAD_TRIM,
    LOAD_FLUSH,
    LOAD_KINDS,
};

struct load_kind_info {
    const char *name;
    uint16_t command; // NBD_CMD_*
    uint16_t flags;   // NBD_CMD_FLAG_*
};

extern const struct load_kind_info load_kinds[LOAD_KINDS];

enum load_pattern {
    LOAD_RANDOM, // any place, with repetition
    // One place after the other, all connections together; then from the start.
    LOAD_SEQUENTIAL,
    // Each place once, scattered; then again.
    LOAD_ONCE,
};

struct load_plan {
    enum load_pattern pattern;
    unsigned weights[LOAD_KINDS];
    unsigned weight_total;
    uint32_t block; // bytes of a request
    uint64_t start; // first byte of the span
    uint64_t align; // bytes from one place to the next
    uint64_t count; // places in the span
    uint64_t cursor;
    uint64_t step; // LOAD_ONCE: from one place to the next, coprime to count
    uint64_t random;
};

// Reads a mix such as "read" or "read:70,write:30": kinds and their weights. Returns false for any
// other text.
bool load_plan_parse_mix(struct load_plan *plan, const char *text);

// Lays the places out: block bytes at every multiple of align inside the span. Returns false when
// not even one fits.
bool load_plan_place(struct load_plan *plan, uint64_t start, uint64_t span, uint64_t seed);

// Returns the next request.
enum load_kind load_plan_next(struct load_plan *plan, uint64_t *offset);

#endif
