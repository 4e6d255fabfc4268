// SPDX-License-Identifier: Apache-2.0
// pattern.h: what guests write. Each 8 bytes say which write they come from and where they belong,
// so that data in the wrong place, or nobody's, is recognised.
#ifndef LAZYCOW_TESTS_SIM_PATTERN_H
#define LAZYCOW_TESTS_SIM_PATTERN_H

#include <stddef.h>
#include <stdint.h>

// A value stands for one write, or one layer of the image as it was in the beginning. 0: zeros.
#define PATTERN_ZEROS 0u
#define PATTERN_VALUE_MAX 0x7fffffu
// A flag of values whose sectors compress well.
#define PATTERN_COMPRESSIBLE 0x800000u

// The bytes that value puts at [guest, guest + length), at any alignment.
void pattern_fill(void *buf, uint32_t value, uint64_t guest, size_t length);

// Says what is in the bytes found at guest (at least 8 of them, guest a multiple of 8), as text.
// Room for PATTERN_TEXT bytes.
#define PATTERN_TEXT 96
void pattern_describe(const void *bytes, char *text);

#endif
