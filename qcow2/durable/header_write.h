// SPDX-License-Identifier: Apache-2.0
// header_write.h: what a sync writes to the header. Each write is a few bytes inside one sector, so that
// a power cut leaves all of it or nothing. Each submits one I/O, whose end is the op's next turn.
#ifndef LAZYCOW_QCOW2_DURABLE_HEADER_WRITE_H
#define LAZYCOW_QCOW2_DURABLE_HEADER_WRITE_H

#include <sys/uio.h>

struct image;
struct op;

// The bytes that are being written.
struct header_write {
    unsigned char bytes[24];
    struct iovec iov;
};

// Writes the incompatible, compatible and autoclear bits as the image has them now.
void header_write_bits(struct header_write *hw, struct op *op);

// Takes the extension of bitmaps out of the header. To be called when their autoclear bit is durably
// off, so that nobody misses it.
void header_write_no_bitmaps(struct header_write *hw, struct op *op);
// And out of the header in memory, once that is durable.
void header_forget_bitmaps(struct image *image);

#endif
