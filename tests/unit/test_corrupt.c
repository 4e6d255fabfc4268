// SPDX-License-Identifier: Apache-2.0
// test_corrupt.c: the corrupt bit is on disk in the end, whatever a sync was writing beside it.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/core/corrupt.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/format.h"
#include "tests/unit/engine.h"
#include "tests/unit/scripted_file.h"

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
    static unsigned char data[512];
    struct create_options create = {.size = 1 << 20,
                                    .version = 3,
                                    .cluster_bits = 16,
                                    .refcount_order = 4,
                                    .lazy_refcounts = 1};
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    struct op write = {.kind = OP_WRITE,
                       .flags = OP_FUA,
                       .length = sizeof(data),
                       .buf = (void *)data,
                       .done = write_done};
    struct scripted_file *disk = scripted_file_new();
    struct image *image = scripted_image_new(disk, &create, &options);
    struct error err;

    (void)state;
    op_start(image, &write);
    while (scripted_file_turn(disk) || !(disk->queued > 0 && is_header_write(disk->queue[0]))) {
        if (runq_empty(&disk->runq) && !is_header_write(disk->queue[0]))
            scripted_file_end(disk, 0, 0);
    }
    // The dirty bit is being written; requests from now on overtake it.
    corrupt_found(image, "the test found something");
    while (scripted_file_turn(disk) || disk->queued > 1) {
        if (runq_empty(&disk->runq))
            scripted_file_end(disk, 1, 0);
    }
    scripted_file_run(disk);
    assert_null(write.buf);
    assert_int_equal(format_get64(disk->bytes + HEADER_OFFSET_INCOMPATIBLE),
                     HEADER_INCOMPATIBLE_DIRTY | HEADER_INCOMPATIBLE_CORRUPT);
    assert_int_not_equal(image_finish(image, &err), 0);
    image_close(image);
    scripted_file_free(disk);
}

static const struct image_options options = {.format = IMAGE_FORMAT_QCOW2};

// The first finding is told and marked; what follows from it is not told again.
static void it_is_told_once(void **state)
{
    struct engine e;

    (void)state;
    engine_begin_with(&e, &engine_large, &options);
    corrupt_found(e.image, "cluster %d is odd", 7);
    corrupt_found(e.image, "so is %d", 8);
    engine_run(&e);
    assert_true(engine_said(&e, "cluster 7 is odd: the image is corrupt"));
    assert_false(engine_said(&e, "so is"));
    assert_string_equal(e.order, "header.");
    assert_int_equal(engine_write(&e, 0, 512, 1), -EIO);
    engine_free(&e);
}

// Writing the bit may fail; who serves it next finds the contradiction again.
static void a_bit_that_cannot_be_set(void **state)
{
    struct engine e;

    (void)state;
    engine_begin_with(&e, &engine_large, &options);
    corrupt_found(e.image, "odd");
    scripted_file_end(e.disk, engine_reach(&e, "header"), -EIO);
    engine_run(&e);
    assert_true(engine_said(&e, "cannot set the corrupt bit: Input/output error"));
    assert_false(e.image->corrupt->busy);
    engine_free(&e);
}

// Version 2 has no such bit, an image that is only read is not written.
static void nothing_is_marked_where_it_cannot_be(void **state)
{
    struct create_options create = engine_large;
    struct engine e;

    (void)state;
    create.version = 2;
    create.lazy_refcounts = false;
    engine_begin_with(&e, &create, &options);
    corrupt_found(e.image, "odd");
    engine_run(&e);
    assert_string_equal(e.order, "");
    assert_int_equal(engine_write(&e, 0, 512, 1), -EIO);
    engine_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bit_outlives_a_header_write),
        cmocka_unit_test(it_is_told_once),
        cmocka_unit_test(a_bit_that_cannot_be_set),
        cmocka_unit_test(nothing_is_marked_where_it_cannot_be),
    };

    return cmocka_run_group_tests_name("corrupt", tests, NULL, NULL);
}
