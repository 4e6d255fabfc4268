// SPDX-License-Identifier: Apache-2.0
// The corrupt bit is on disk in the end, whatever a sync was writing beside it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/offline/create.h"
#include "qcow2/engine.h"

#define FILE_BYTES_MAX (4u << 20)
#define QUEUE_MAX 16

// ---- A file in memory whose requests end when the test says so ----------------------------------

struct disk {
    struct file file;
    struct runq runq;
    uint8_t bytes[FILE_BYTES_MAX];
    uint64_t size;
    struct file_io *queue[QUEUE_MAX];
    size_t queued;
};

static struct disk *disk_of(struct file *file)
{
    return (struct disk *)((char *)file - offsetof(struct disk, file));
}

static void disk_submit(struct file *file, struct file_io *io)
{
    struct disk *d = disk_of(file);

    assert_true(d->queued < QUEUE_MAX);
    d->queue[d->queued++] = io;
}

// Ends one of the requests.
static void end_request(struct disk *d, size_t index)
{
    struct file_io *io = d->queue[index];
    uint64_t pos = io->offset;

    memmove(&d->queue[index], &d->queue[index + 1], (--d->queued - index) * sizeof(*d->queue));
    assert_true(io->offset + io->length <= FILE_BYTES_MAX);
    if (io->kind != FILE_READ && io->kind != FILE_DATASYNC && io->kind != FILE_PUNCH &&
        io->offset + io->length > d->size)
        d->size = io->offset + io->length;
    for (int i = 0; i < io->iovcnt; pos += io->iov[i++].iov_len) {
        if (io->kind == FILE_READ)
            memcpy(io->iov[i].iov_base, d->bytes + pos, io->iov[i].iov_len);
        else
            memcpy(d->bytes + pos, io->iov[i].iov_base, io->iov[i].iov_len);
    }
    file_io_complete(io, 0);
}

static void disk_wait(struct file *file)
{
    end_request(disk_of(file), 0);
}

static int64_t disk_size(struct file *file)
{
    return (int64_t)disk_of(file)->size;
}

static void disk_close(struct file *file)
{
    (void)file;
}

static const struct file_ops disk_ops = {
    .submit = disk_submit, .wait = disk_wait, .size = disk_size, .close = disk_close};

// ---- The test -----------------------------------------------------------------------------------

static bool is_header_write(const struct file_io *io)
{
    return io->kind == FILE_WRITE && io->offset == HEADER_OFFSET_INCOMPATIBLE;
}

static void write_done(struct op *op)
{
    op->buf = NULL;
}

static void bit_outlives_a_header_write(void **state)
{
    static char name[] = "disk";
    static unsigned char data[512];
    struct create_options create = {.size = 1 << 20,
                                    .version = 3,
                                    .cluster_bits = 16,
                                    .refcount_order = 4,
                                    .lazy_refcounts = 1};
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    struct image_host host = {0};
    struct op write = {.kind = OP_WRITE,
                       .flags = OP_FUA,
                       .length = sizeof(data),
                       .buf = (void *)data,
                       .done = write_done};
    struct disk *d = calloc(1, sizeof(*d));
    struct image *image;
    struct error err;

    (void)state;
    assert_non_null(d);
    runq_init(&d->runq);
    d->file =
        (struct file){.ops = &disk_ops, .runq = &d->runq, .name = name, .fresh_is_zero = true};
    assert_int_equal(create_image(&d->file, &create, &err), 0);
    assert_int_equal(image_open(&image, &d->file, &options, &host, &err), 0);
    op_start(image, &write);
    while (runq_run(&d->runq) || !(d->queued > 0 && is_header_write(d->queue[0]))) {
        if (runq_empty(&d->runq) && !is_header_write(d->queue[0]))
            end_request(d, 0);
    }
    // The dirty bit is on its way; what is submitted from now on overtakes it.
    corrupt_found(image, "the test found something");
    while (runq_run(&d->runq) || d->queued > 1) {
        if (runq_empty(&d->runq))
            end_request(d, 1);
    }
    file_drain(&d->file);
    assert_null(write.buf);
    assert_int_equal(format_get64(d->bytes + HEADER_OFFSET_INCOMPATIBLE),
                     HEADER_INCOMPATIBLE_DIRTY | HEADER_INCOMPATIBLE_CORRUPT);
    assert_int_not_equal(image_finish(image, &err), 0);
    image_close(image);
    free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bit_outlives_a_header_write),
    };

    return cmocka_run_group_tests_name("corrupt", tests, NULL, NULL);
}
