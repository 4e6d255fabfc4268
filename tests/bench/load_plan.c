// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/load_plan.h"

#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"

// Largest weight of a kind: parts of a thousand are fine enough, and the sum stays small.
#define WEIGHT_MAX 1000u

const struct load_kind_info load_kinds[LOAD_KINDS] = {
    [LOAD_READ] = {"read", NBD_CMD_READ, 0},
    [LOAD_WRITE] = {"write", NBD_CMD_WRITE, 0},
    [LOAD_FUA] = {"fua", NBD_CMD_WRITE, NBD_CMD_FLAG_FUA},
    [LOAD_ZERO] = {"zero", NBD_CMD_WRITE_ZEROES, 0},
    [LOAD_TRIM] = {"trim", NBD_CMD_TRIM, 0},
    [LOAD_FLUSH] = {"flush", NBD_CMD_FLUSH, 0},
};

// xorshift64*: a few instructions, and good enough to scatter requests.
static uint64_t next_random(struct load_plan *plan)
{
    plan->random ^= plan->random >> 12;
    plan->random ^= plan->random << 25;
    plan->random ^= plan->random >> 27;
    return plan->random * 0x2545f4914f6cdd1dull;
}

// Returns a number below limit; the bias of a 64-bit product does not matter here.
static uint64_t random_below(struct load_plan *plan, uint64_t limit)
{
    return (uint64_t)(((unsigned __int128)next_random(plan) * limit) >> 64);
}

// Reads one "kind" or "kind:weight" of the given length.
static bool parse_part(struct load_plan *plan, const char *part, size_t length)
{
    const char *colon = memchr(part, ':', length);
    size_t name_length = colon != NULL ? (size_t)(colon - part) : length;
    unsigned long weight = 1;

    if (colon != NULL) {
        char *end;

        weight = strtoul(colon + 1, &end, 10);
        if (end == colon + 1 || end != part + length || weight < 1 || weight > WEIGHT_MAX)
            return false;
    }
    for (unsigned kind = 0; kind < LOAD_KINDS; kind++) {
        const char *name = load_kinds[kind].name;

        if (strlen(name) == name_length && memcmp(name, part, name_length) == 0) {
            plan->weights[kind] += (unsigned)weight;
            plan->weight_total += (unsigned)weight;
            return true;
        }
    }
    return false;
}

bool load_plan_parse_mix(struct load_plan *plan, const char *text)
{
    memset(plan->weights, 0, sizeof(plan->weights));
    plan->weight_total = 0;
    for (;;) {
        size_t length = strcspn(text, ",");

        if (!parse_part(plan, text, length))
            return false;
        if (text[length] == '\0')
            return true;
        text += length + 1;
    }
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        uint64_t rest = a % b;

        a = b;
        b = rest;
    }
    return a;
}

bool load_plan_place(struct load_plan *plan, uint64_t start, uint64_t span, uint64_t seed)
{
    if (plan->align == 0)
        plan->align = plan->block;
    if (span < plan->block)
        return false;
    plan->start = start;
    plan->count = (span - plan->block) / plan->align + 1;
    plan->cursor = 0;
    plan->random = seed != 0 ? seed : 1; // zero would stay zero
    // About the golden section of the places, so that neighbours in time are far apart.
    plan->step = (uint64_t)((double)plan->count * 0.6180339887) | 1;
    while (common_divisor(plan->step, plan->count) != 1)
        plan->step++;
    return true;
}

static uint64_t next_place(struct load_plan *plan)
{
    uint64_t place = plan->cursor;

    switch (plan->pattern) {
    case LOAD_RANDOM:
        return random_below(plan, plan->count);
    case LOAD_SEQUENTIAL:
        plan->cursor = place + 1 < plan->count ? place + 1 : 0;
        return place;
    case LOAD_ONCE:
        plan->cursor = (place + plan->step) % plan->count;
        return place;
    }
    abort();
}

static enum load_kind next_kind(struct load_plan *plan)
{
    unsigned kind = 0;
    uint64_t ticket;

    if (plan->weights[LOAD_READ] == plan->weight_total)
        return LOAD_READ;
    ticket = random_below(plan, plan->weight_total);
    while (ticket >= plan->weights[kind])
        ticket -= plan->weights[kind++];
    return (enum load_kind)kind;
}

enum load_kind load_plan_next(struct load_plan *plan, uint64_t *offset)
{
    enum load_kind kind = next_kind(plan);

    *offset = kind == LOAD_FLUSH ? 0 : plan->start + next_place(plan) * plan->align;
    return kind;
}
