// SPDX-License-Identifier: Apache-2.0
// cluster_set.h: a set of cluster numbers (hash table, open addressing).
#ifndef LAZYCOW_QCOW2_BASE_CLUSTER_SET_H
#define LAZYCOW_QCOW2_BASE_CLUSTER_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cluster_set {
    uint64_t *slots; // cluster + 1, 0 = free
    size_t capacity; // power of two, or 0
    size_t count;
};

// A zeroed struct is an empty set.
void cluster_set_free(struct cluster_set *set);
// Allocates room for count clusters at once. Without memory it does nothing: adding then grows the
// table step by step.
void cluster_set_reserve(struct cluster_set *set, uint64_t count);
// Returns 0 or -ENOMEM. Adding a cluster that is in the set does nothing.
int cluster_set_add(struct cluster_set *set, uint64_t cluster);
void cluster_set_remove(struct cluster_set *set, uint64_t cluster);
bool cluster_set_has(const struct cluster_set *set, uint64_t cluster);

#endif
