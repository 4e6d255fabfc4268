// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/cluster_set.h"

#include <errno.h>
#include <stdlib.h>

// Slots of the smallest table; a power of two.
#define SLOTS_MIN 64

static size_t home_slot(const struct cluster_set *set, uint64_t cluster)
{
    return (size_t)((cluster * 0x9e3779b97f4a7c15ull) >> 20) & (set->capacity - 1);
}

// Returns the slot that holds the cluster, or the free slot where it would be added.
static size_t find_slot(const struct cluster_set *set, uint64_t cluster)
{
    size_t slot = home_slot(set, cluster);

    while (set->slots[slot] != 0 && set->slots[slot] != cluster + 1)
        slot = (slot + 1) & (set->capacity - 1);
    return slot;
}

void cluster_set_free(struct cluster_set *set)
{
    free(set->slots);
    *set = (struct cluster_set){0};
}

static int set_capacity(struct cluster_set *set, size_t capacity)
{
    struct cluster_set larger = {.capacity = capacity, .count = set->count};

    larger.slots = calloc(larger.capacity, sizeof(*larger.slots));
    if (!larger.slots)
        return -ENOMEM;
    for (size_t i = 0; i < set->capacity; i++) {
        if (set->slots[i] != 0)
            larger.slots[find_slot(&larger, set->slots[i] - 1)] = set->slots[i];
    }
    free(set->slots);
    *set = larger;
    return 0;
}

void cluster_set_reserve(struct cluster_set *set, uint64_t count)
{
    size_t capacity = SLOTS_MIN;

    while (capacity / 2 < count)
        capacity *= 2;
    if (capacity > set->capacity)
        set_capacity(set, capacity);
}

int cluster_set_add(struct cluster_set *set, uint64_t cluster)
{
    // The table stays at most half full, so that probe sequences stay short.
    if (set->count * 2 >= set->capacity &&
        set_capacity(set, set->capacity ? set->capacity * 2 : SLOTS_MIN) < 0)
        return -ENOMEM;

    size_t slot = find_slot(set, cluster);
    if (set->slots[slot] == 0) {
        set->slots[slot] = cluster + 1;
        set->count++;
    }
    return 0;
}

void cluster_set_remove(struct cluster_set *set, uint64_t cluster)
{
    if (set->count == 0)
        return;

    size_t hole = find_slot(set, cluster);
    if (set->slots[hole] == 0)
        return;
    set->slots[hole] = 0;
    set->count--;

    // Entries of the same probe sequence move up, because a look-up stops at the first free slot.
    size_t mask = set->capacity - 1;
    for (size_t slot = (hole + 1) & mask; set->slots[slot] != 0; slot = (slot + 1) & mask) {
        size_t home = home_slot(set, set->slots[slot] - 1);

        if (((slot - home) & mask) >= ((slot - hole) & mask)) {
            set->slots[hole] = set->slots[slot];
            set->slots[slot] = 0;
            hole = slot;
        }
    }
}

bool cluster_set_has(const struct cluster_set *set, uint64_t cluster)
{
    return set->count > 0 && set->slots[find_slot(set, cluster)] != 0;
}
