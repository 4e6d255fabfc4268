// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/corrupt.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/core/dirty_bit.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/format/format.h"
#include "qcow2/format/header.h"

enum { CORRUPT_WRITE, CORRUPT_WRITTEN };

static const char *const state_names[] = {
    [CORRUPT_WRITE] = "write",
    [CORRUPT_WRITTEN] = "written",
};

static void corrupt_step(struct op *op)
{
    struct image *image = op->image;
    struct corrupt *corrupt = image->corrupt;

    if (op->state == CORRUPT_WRITTEN) {
        corrupt->busy = false;
        if (op->wait.result < 0)
            image_log(image, "cannot set the corrupt bit: %s", strerror(-op->wait.result));
        return;
    }
    uint64_t incompatible = image->header.incompatible;
    if (dirty_bit_on(image->dirty_bit))
        incompatible |= HEADER_INCOMPATIBLE_DIRTY;
    format_put64(corrupt->bytes, incompatible);
    corrupt->iov = (struct iovec){.iov_base = corrupt->bytes, .iov_len = sizeof(corrupt->bytes)};
    op->state = CORRUPT_WRITTEN;
    op_submit(op, image->file, FILE_WRITE, HEADER_OFFSET_INCOMPATIBLE, sizeof(corrupt->bytes),
              &corrupt->iov, 1);
}

static const struct op_machine corrupt_machine =
    OP_MACHINE("corrupt bit", corrupt_step, state_names);

// A running sync may be writing these bytes of the header with their old value. The op waits for
// the sync after it, which finds the latched error and writes nothing, as do all later ones.
static void write_bit(struct image *image)
{
    struct corrupt *corrupt = image->corrupt;

    if (image->header.version < 3 || image->read_only ||
        (image->header.incompatible & HEADER_INCOMPATIBLE_CORRUPT))
        return;
    image->header.incompatible |= HEADER_INCOMPATIBLE_CORRUPT;
    corrupt->busy = true;
    op_init(&corrupt->op, image, image->runq, &corrupt_machine);
    corrupt->op.state = CORRUPT_WRITE;
    sync_wait(&corrupt->op);
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
