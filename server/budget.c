// SPDX-License-Identifier: Apache-2.0
#include "server/budget.h"

#include <assert.h>

bool share_take(struct share *share, size_t bytes)
{
    struct budget *budget = share->budget;
    size_t most = budget->limit + (share->used == 0 ? budget->reserve : 0);

    if (bytes > most || budget->used > most - bytes) {
        return false;
    }
    if (share->used > 0) {
        size_t left = budget->limit - budget->used;
        size_t limit = share->limit < left ? share->limit : left;

        if (bytes > limit || share->used > limit - bytes) {
            return false;
        }
    }
    share->used += bytes;
    budget->used += bytes;
    return true;
}

void share_give(struct share *share, size_t bytes)
{
    assert(bytes <= share->used && bytes <= share->budget->used);
    share->used -= bytes;
    share->budget->used -= bytes;
    share->budget->returned++;
}
