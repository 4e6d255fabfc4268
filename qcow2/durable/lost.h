// SPDX-License-Identifier: Apache-2.0
// lost.h: what the guest was told and the file does not have, when an image is closed all the same:
// clusters that the tables in memory map otherwise than those on disk.
#ifndef LAZYCOW_QCOW2_DURABLE_LOST_H
#define LAZYCOW_QCOW2_DURABLE_LOST_H

#include <stdint.h>

struct image;

struct lost {
    uint64_t clusters; // of the guest disk
    uint64_t bytes;    // of it that they cover
    uint64_t first;    // guest bytes [first, end) that they lie in
    uint64_t end;
    // 0, or the error that kept some tables from being compared: their clusters are not counted.
    int error;
};

// Compares the tables, blocking. Nothing may be running.
void lost_count(struct image *image, struct lost *lost);

#endif
