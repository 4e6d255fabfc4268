// SPDX-License-Identifier: Apache-2.0
// budget.h: shares payload memory out among connections: one budget a server, one share a
// connection.
//
// Clients that take much memory and never take their replies must not stop the others. Two rules
// prevent it:
// 1. A connection may use at most as much as remains free afterwards, besides its own limit. So k
//    connections that take all they can leave 1/(k+1) of the budget free for the next one.
// 2. A connection that uses nothing may take from a reserve, for one request.
#ifndef LAZYCOW_SERVER_BUDGET_H
#define LAZYCOW_SERVER_BUDGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct budget {
    size_t limit;   // bytes that shares may use
    size_t reserve; // bytes above the limit, for rule 2
    size_t used;    // bytes
    // Counts the calls of share_give, so that waiting clients know when to try again.
    uint64_t returned;
};

struct share {
    struct budget *budget; // borrowed, outlives the share
    size_t limit;          // bytes
    size_t used;           // bytes
};

// Takes bytes, or takes nothing and returns false.
bool share_take(struct share *share, size_t bytes);

// Gives back bytes that were taken.
void share_give(struct share *share, size_t bytes);

#endif
