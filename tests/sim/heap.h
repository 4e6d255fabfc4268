// SPDX-License-Identifier: Apache-2.0
// heap.h: memory that runs out: what the engine and the bridge allocate while they serve may fail.
// The program is linked so that their calls come here first (-Wl,--wrap, see Makefile.am).
#ifndef LAZYCOW_TESTS_SIM_HEAP_H
#define LAZYCOW_TESTS_SIM_HEAP_H

#include <stdbool.h>
#include <stdint.h>

// Of the allocations from now on, [first, first + count) fail; count 0: none.
void heap_begin(uint64_t first, uint64_t count);
// How many failed since.
uint64_t heap_failed(void);
// Only what is allocated between enter(true) and enter(false) counts and may fail. Returns what it
// was before.
bool heap_enter(bool inside);

#endif
