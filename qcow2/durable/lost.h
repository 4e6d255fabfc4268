// SPDX-License-Identifier: Apache-2.0
// lost.h: counts the guest clusters that an image loses when it is closed after a failure: clusters
// that the tables in memory map otherwise than the tables on disk.
#ifndef LAZYCOW_QCOW2_DURABLE_LOST_H
#define LAZYCOW_QCOW2_DURABLE_LOST_H

#include <stdint.h>

struct image;

struct lost {
    uint64_t clusters; // of the guest disk
    uint64_t bytes;    // of it that they cover
    // The lost clusters lie in guest bytes [first, end).
    uint64_t first;
    uint64_t end;
    // 0, or the error that kept some tables from being compared; their clusters are not counted.
    int error;
};

// Compares the tables, blocking. No op may be in flight.
void lost_count(struct image *image, struct lost *lost);

#endif
