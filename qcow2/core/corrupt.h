// SPDX-License-Identifier: Apache-2.0
// corrupt.h: handles an image that is found to contradict itself while it is served. Format: qcow2
// specification, "Header", incompatible feature bit 1.
#ifndef LAZYCOW_QCOW2_CORE_CORRUPT_H
#define LAZYCOW_QCOW2_CORE_CORRUPT_H

#include <stdbool.h>
#include <sys/uio.h>

#include "qcow2/base/op.h"

struct image;

struct corrupt {
    bool busy;    // the bit is being written
    struct op op; // internal
    struct iovec iov;
    unsigned char bytes[8];
};

// Called when a write would meet a contradiction in the image. Logs the sentence, refuses writes
// from now on, and sets the corrupt bit on disk soon if the image's version has one.
__attribute__((format(printf, 2, 3))) void corrupt_found(struct image *image, const char *format,
                                                         ...);

#endif
