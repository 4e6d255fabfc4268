// SPDX-License-Identifier: Apache-2.0
// budget.h: who may use how much payload memory. One budget a server, one share a connection.
//
// Whatever some clients do, the others must be able to go on, also when the memory is held by
// clients that never take their replies. Two rules see to that:
//  1. A connection may not use more than is left free (besides its own limit). So k connections
//     that take all they can get leave 1/(k+1) of the budget free for the next one.
//  2. A connection that uses nothing may go into a reserve, for one request.
#ifndef LAZYCOW_SERVER_BUDGET_H
#define LAZYCOW_SERVER_BUDGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct budget {
    size_t limit;      // bytes that shares may use
    size_t reserve;    // bytes above the limit, for rule 2
    size_t used;       // bytes
    uint64_t returned; // counts the calls of share_give: something may fit that did not before
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
