// SPDX-License-Identifier: Apache-2.0
// test_dump.c: a dump tells each request's range, its state, and the event that it waits for.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/dump.h"
#include "tests/unit/scripted_file.h"

#define TEXT_MAX 4000

static void add_line(void *context, const char *line)
{
    char *text = context;

    assert_true(strlen(text) + strlen(line) + 2 < TEXT_MAX);
    strcat(text, line);
    strcat(text, "\n");
}

static const char *dump(const struct image *image)
{
    static char text[TEXT_MAX];

    text[0] = '\0';
    image_dump(image, add_line, text);
    return text;
}

static void op_is_done(struct op *op)
{
    op->buf = NULL;
}

struct fixture {
    struct scripted_file *disk;
    struct image *image;
    unsigned char bytes[4096];
};

static int set_up(void **state)
{
    struct create_options create = {.size = 1 << 30,
                                    .version = 3,
                                    .cluster_bits = 16,
                                    .refcount_order = 4,
                                    .lazy_refcounts = 1};
    struct fixture *f = calloc(1, sizeof(*f));

    f->disk = scripted_file_new();
    f->image =
        scripted_image_new(f->disk, &create, &(struct image_options){.format = IMAGE_FORMAT_QCOW2});
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    image_close(f->image);
    scripted_file_free(f->disk);
    free(f);
    return 0;
}

static void assert_said(const struct fixture *f, const char *what)
{
    const char *text = dump(f->image);

    if (!strstr(text, what))
        fail_msg("'%s' is not in the dump:\n%s", what, text);
}

static void idle_image(void **state)
{
    struct fixture *f = *state;

    assert_said(f, "requests: 0\n");
    assert_said(f, "sync: idle;");
    assert_said(f, "quarantine: 0 extents, releaser idle\n");
}

static void request_at_the_disk(void **state)
{
    struct fixture *f = *state;
    struct op read = {.kind = OP_READ, .length = 4096, .buf = f->bytes, .done = op_is_done};

    assert_int_equal(scripted_write(f->disk, f->image, f->bytes, 0, 4096), 0);
    op_start(f->image, &read);
    assert_said(f,
                "requests: 1\n  read of 4096 bytes at 0 (0 done), state data: waits for a read of "
                "4096 bytes at host offset ");
    scripted_file_run(f->disk);
    assert_said(f, "requests: 0\n");
}

static void requests_that_wait_for_others(void **state)
{
    struct fixture *f = *state;
    struct op first = {.kind = OP_WRITE, .length = 4096, .buf = f->bytes, .done = op_is_done};
    struct op second = first;

    second.offset = 8192;
    op_start(f->image, &first);
    op_start(f->image, &second);
    // The data's write stays; everything before it goes on.
    for (;;) {
        size_t n = 0;

        scripted_file_turns(f->disk);
        while (n < f->disk->queued && f->disk->queue[n]->kind == FILE_WRITE)
            n++;
        if (n == f->disk->queued)
            break;
        scripted_file_end(f->disk, n, 0);
    }
    assert_said(f,
                "write of 4096 bytes at 0 (0 done), state link: waits for a write of 4096 bytes");
    assert_said(f,
                "write of 4096 bytes at 8192 (0 done), state plan: waits for a change of the same "
                "guest clusters\n");
    scripted_file_run(f->disk);
}

static void running_sync(void **state)
{
    struct fixture *f = *state;
    struct op write = {
        .kind = OP_WRITE, .flags = OP_FUA, .length = 4096, .buf = f->bytes, .done = op_is_done};

    op_start(f->image, &write);
    scripted_file_turns(f->disk);
    while (scripted_file_find(f->disk, FILE_DATASYNC) == f->disk->queued) {
        assert_true(f->disk->queued > 0);
        scripted_file_end(f->disk, 0, 0);
        scripted_file_turns(f->disk);
    }
    assert_said(f, "state sync: waits for a sync\n");
    assert_said(f, "sync: running;");
    assert_said(f, "  sync, state tables: waits for a barrier\n");
    scripted_file_run(f->disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(idle_image, set_up, tear_down),
        cmocka_unit_test_setup_teardown(request_at_the_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(requests_that_wait_for_others, set_up, tear_down),
        cmocka_unit_test_setup_teardown(running_sync, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
