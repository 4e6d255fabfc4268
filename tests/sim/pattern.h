// SPDX-License-Identifier: Apache-2.0
// pattern.h: the data that guests write. Each 8 bytes name the write that they come from and the
// place where they belong, so that misplaced and foreign data is recognised.
#ifndef LAZYCOW_TESTS_SIM_PATTERN_H
#define LAZYCOW_TESTS_SIM_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A value stands for one write, or for one layer of the initial image. 0: zeros.
#define PATTERN_ZEROS 0u
#define PATTERN_VALUE_MAX 0x7fffffu
// Flag of values whose sectors compress well.
#define PATTERN_COMPRESSIBLE 0x800000u

// Fills buf with the bytes of value at [guest, guest + length), at any alignment.
void pattern_fill(void *buf, uint32_t value, uint64_t guest, size_t length);

// Bytes that have a stamp of their own.
#define PATTERN_WORD 8u

// Tells the guest offset where the PATTERN_WORD bytes belong; of compressible ones, that of their
// sector. Returns false where they come from no write, or are zeros.
bool pattern_place(const void *bytes, uint64_t *guest);
bool pattern_is_zeros(const void *bytes);

// Describes the bytes found at guest (at least 8 of them, guest a multiple of 8) in text, which has
// room for PATTERN_TEXT bytes.
#define PATTERN_TEXT 96
void pattern_describe(const void *bytes, char *text);

#endif
