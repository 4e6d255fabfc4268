// SPDX-License-Identifier: Apache-2.0
// writable.h: the part of opening (image.h) that only a writable image needs.
#ifndef LAZYCOW_QCOW2_WRITABLE_H
#define LAZYCOW_QCOW2_WRITABLE_H

#include "qcow2/base/error.h"

struct image;

// Reads the refcount table, refuses a file that was cut short, and begins recovery of an image that
// was not closed cleanly. The header, the L1 table and the snapshot table are in memory. Returns 0
// or a negative errno with a message.
int writable_prepare(struct image *image, struct error *err);

#endif
