// SPDX-License-Identifier: Apache-2.0
#include "qcow2/durable/header_write.h"

#include <string.h>

#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/core/dirty_bit.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/bitmap_directory.h"
#include "qcow2/format/format.h"
#include "qcow2/format/header.h"

static void header_write_submit(struct header_write *hw, struct op *op, uint64_t offset,
                                size_t length)
{
    hw->iov = (struct iovec){.iov_base = hw->bytes, .iov_len = length};
    op_submit(op, op->image->file, FILE_WRITE, offset, length, &hw->iov, 1);
}

void header_write_bits(struct header_write *hw, struct op *op)
{
    struct header *header = &op->image->header;

    if (dirty_bit_on(op->image->dirty_bit))
        header->incompatible |= HEADER_INCOMPATIBLE_DIRTY;
    else
        header->incompatible &= ~HEADER_INCOMPATIBLE_DIRTY;
    format_put64(hw->bytes, header->incompatible);
    format_put64(hw->bytes + 8, header->compatible);
    format_put64(hw->bytes + 16, header->autoclear);
    header_write_submit(hw, op, HEADER_OFFSET_INCOMPATIBLE, sizeof(hw->bytes));
}

// Overwrites the type of the extension. Removing it would move the extensions behind it, which is
// more than one sector can hold. The last extension becomes the end marker.
void header_write_no_bitmaps(struct header_write *hw, struct op *op)
{
    const struct header *header = &op->image->header;
    const struct header_extension *extension = bitmap_directory_extension(header);
    bool last = extension == &header->extensions[header->extension_count - 1];

    format_put32(hw->bytes, last ? FORMAT_EXTENSION_END : FORMAT_EXTENSION_NONE);
    format_put32(hw->bytes + 4, last ? 0 : extension->length);
    header_write_submit(hw, op, extension->offset - FORMAT_EXTENSION_BYTES, FORMAT_EXTENSION_BYTES);
}

void header_forget_bitmaps(struct image *image)
{
    struct header *header = &image->header;
    size_t index = (size_t)(bitmap_directory_extension(header) - header->extensions);

    header->extension_count--;
    memmove(&header->extensions[index], &header->extensions[index + 1],
            (header->extension_count - index) * sizeof(header->extensions[0]));
    image->has_bitmaps = bitmap_directory_extension(header) != NULL;
}
