// SPDX-License-Identifier: Apache-2.0
// header_write.h: the header writes of a sync. Each writes a few bytes inside one sector, so that a
// power cut leaves all of them or none. Each submits one I/O, whose end is the op's next turn.
#ifndef LAZYCOW_QCOW2_DURABLE_HEADER_WRITE_H
#define LAZYCOW_QCOW2_DURABLE_HEADER_WRITE_H

#include <sys/uio.h>

struct image;
struct op;

// The bytes of the write in flight.
struct header_write {
    unsigned char bytes[24];
    struct iovec iov;
};

// Writes the incompatible, compatible and autoclear bits as the image has them now.
void header_write_bits(struct header_write *hw, struct op *op);

// Removes the bitmaps extension from the header on disk. Called when the autoclear bit of bitmaps
// is durably off, so that no program looks for the extension.
void header_write_no_bitmaps(struct header_write *hw, struct op *op);
// Removes the bitmaps extension from the header in memory, once it is durably gone from the disk.
void header_forget_bitmaps(struct image *image);

#endif
