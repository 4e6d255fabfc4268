// SPDX-License-Identifier: Apache-2.0
// heap.h: memory that runs out: allocations of the engine and the bridge may fail while they serve.
// The program is linked so that their calls come here first (-Wl,--wrap, see Makefile.am).
#ifndef LAZYCOW_TESTS_SIM_HEAP_H
#define LAZYCOW_TESTS_SIM_HEAP_H

#include <stdbool.h>
#include <stdint.h>

// Makes the allocations [first, first + count) from now on fail; count 0: none.
void heap_begin(uint64_t first, uint64_t count);
// Returns the number of allocations that failed since heap_begin.
uint64_t heap_failed(void);
// Allocations between enter(true) and enter(false) count and may fail. Returns the state before.
bool heap_enter(bool inside);

#endif
