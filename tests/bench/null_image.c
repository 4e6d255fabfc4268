// SPDX-License-Identifier: Apache-2.0
// null_image.c: the null engine: answers every op at once; reads return zeros. Linked in place of
// qcow2/image.c it makes a server that shows the cost of protocol, bridge and loop alone, the
// ceiling for the real engine. The image has the size of its file, which is not touched.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/container.h"
#include "qcow2/image.h"
#include "qcow2/base/op.h"

struct image {
    struct file *file;
    uint64_t size;
    bool read_only;
};

enum image_format image_format_parse(const char *name)
{
    return strcmp(name, "qcow2") == 0 ? IMAGE_FORMAT_QCOW2
           : strcmp(name, "raw") == 0 ? IMAGE_FORMAT_RAW
                                      : IMAGE_FORMAT_UNKNOWN;
}

int image_open(struct image **out, struct file *file, const struct image_options *options,
               const struct image_host *host, struct error *err)
{
    int64_t size = file_size(file);
    struct image *image;

    (void)host;
    if (size < 0) {
        return error_set(err, (int)-size, "'%s': %s", file->name, strerror((int)-size));
    }
    image = calloc(1, sizeof(*image));
    if (image == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    image->file = file;
    image->size = (uint64_t)size;
    image->read_only = options->read_only;
    *out = image;
    return 0;
}

uint64_t image_size(const struct image *image)
{
    return image->size;
}

uint64_t image_cluster_size(const struct image *image)
{
    (void)image;
    return 65536;
}

bool image_read_only(const struct image *image)
{
    return image->read_only;
}

const char *image_name(const struct image *image)
{
    return image->file->name;
}

void image_close(struct image *image)
{
    file_close(image->file);
    free(image);
}

static void finish(struct task *task)
{
    struct op *op = container_of(task, struct op, wait.task);

    op->done(op);
}

void op_start(struct image *image, struct op *op)
{
    op->result = 0;
    op->extent_count = 0;
    if (op->kind == OP_READ) {
        memset(op->buf, 0, op->length);
    }
    if (op->kind == OP_BLOCK_STATUS || (op->flags & OP_REPORT_HOLES)) {
        op->extents[0] = (struct extent){.length = op->length};
        op->extent_count = 1;
    }
    op->wait.task.run = finish;
    runq_post(image->file->runq, &op->wait.task);
}

// No read takes a loan.
bool loan_settle(struct loan *loan, const struct extent *extents, size_t count, void *buf)
{
    (void)loan;
    (void)extents;
    (void)count;
    (void)buf;
    return false;
}

void loan_return(struct loan *loan, const struct extent *extents, size_t count)
{
    (void)loan;
    (void)extents;
    (void)count;
}
