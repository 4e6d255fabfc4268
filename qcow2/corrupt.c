// SPDX-License-Identifier: Apache-2.0
#include "qcow2/corrupt.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "qcow2/engine.h"

static void bit_written(struct file_io *io)
{
    struct corrupt *corrupt = (struct corrupt *)((char *)io - offsetof(struct corrupt, io));

    corrupt->busy = false;
    if (io->result < 0)
        image_log(corrupt->image, "cannot set the corrupt bit: %s", strerror(-io->result));
}

static void write_bit(struct image *image)
{
    struct corrupt *corrupt = &image->corrupt;
    uint64_t incompatible;

    if (image->header.version < 3 || image->read_only ||
        (image->header.incompatible & HEADER_INCOMPATIBLE_CORRUPT))
        return;
    image->header.incompatible |= HEADER_INCOMPATIBLE_CORRUPT;
    incompatible = image->header.incompatible;
    if (image->sync.dirty_bit)
        incompatible |= HEADER_INCOMPATIBLE_DIRTY;
    format_put64(corrupt->bytes, incompatible);
    corrupt->image = image;
    corrupt->iov = (struct iovec){.iov_base = corrupt->bytes, .iov_len = sizeof(corrupt->bytes)};
    corrupt->busy = true;
    corrupt->io = (struct file_io){.kind = FILE_WRITE,
                                   .offset = HEADER_OFFSET_INCOMPATIBLE,
                                   .length = sizeof(corrupt->bytes),
                                   .iov = &corrupt->iov,
                                   .iovcnt = 1,
                                   .done = bit_written};
    file_submit(image->file, &corrupt->io);
}

void corrupt_found(struct image *image, const char *format, ...)
{
    char what[ERROR_TEXT_MAX];
    va_list args;

    if (image->latched_error < 0)
        return;
    image->latched_error = -EIO;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    image_log(image,
              "%s: the image is corrupt, writes are refused from now on; run 'lazycow check'",
              what);
    write_bit(image);
}
