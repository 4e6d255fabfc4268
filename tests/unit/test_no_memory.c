// SPDX-License-Identifier: Apache-2.0
// A sync that finds no memory in its midst: nothing is lost, nothing is written that need not be.
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "qcow2/core/image_state.h"
#include "qcow2/format/format.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/refcount.h"
#include "tests/unit/scripted_file.h"

// ---- Memory that runs out: the linker leads calls here (--wrap) ----------------------------------

static size_t callocs_refused, reallocs_refused; // from this size on; 0: none

void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);

void *__wrap_calloc(size_t count, size_t bytes)
{
    if (callocs_refused > 0 && count * bytes >= callocs_refused)
        return NULL;
    return __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    return reallocs_refused > 0 && bytes >= reallocs_refused ? NULL : __real_realloc(old, bytes);
}

// ---- Tests --------------------------------------------------------------------------------------

static struct image *new_image(struct scripted_file *disk, unsigned cluster_bits,
                               unsigned refcount_order)
{
    struct create_options create = {.size = 64u << 20,
                                    .version = 3,
                                    .cluster_bits = cluster_bits,
                                    .refcount_order = refcount_order,
                                    .lazy_refcounts = 1};
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};

    return scripted_image_new(disk, &create, &options);
}

static int flush(struct scripted_file *disk, struct image *image)
{
    return scripted_op(disk, image, &(struct op){.kind = OP_FLUSH});
}

// Ends all that is in flight and queued; returns how often the header was written meanwhile.
static unsigned run_and_count_headers(struct scripted_file *disk)
{
    unsigned headers = 0;

    while (scripted_file_turn(disk) || disk->queued > 0) {
        if (!runq_empty(&disk->runq) || disk->queued == 0)
            continue;
        headers += disk->queue[0]->kind == FILE_WRITE && disk->queue[0]->offset < 512;
        scripted_file_end(disk, 0, 0);
    }
    return headers;
}

static void note_done(struct op *op)
{
    op->buf = NULL;
}

// The first sync sets the dirty bit. When a later one has no memory for its copies, the bit is as
// sure as before: it is not written again.
static void the_dirty_bit_is_set_once(void **state)
{
    struct scripted_file *disk = scripted_file_new();
    struct image *image = new_image(disk, 9, 4);
    unsigned char data[512] = {1};
    struct op last = {.kind = OP_FLUSH, .buf = data, .done = note_done};

    (void)state;
    assert_int_equal(scripted_write(disk, image, data, 0, sizeof(data)), 0);
    assert_int_equal(flush(disk, image), 0);
    assert_true(dirty_bit_on(image->dirty_bit));

    // A slice maps 32 KiB. More slices than the list of copies has room for at first.
    for (uint64_t i = 0; i < 40; i++)
        assert_int_equal(scripted_write(disk, image, data, i << 15, sizeof(data)), 0);
    reallocs_refused = 1;
    assert_int_equal(flush(disk, image), -ENOMEM);
    reallocs_refused = 0;
    assert_int_equal(image->latched_error, 0);

    op_start(image, &last);
    assert_int_equal(run_and_count_headers(disk), 0);
    assert_null(last.buf);
    assert_int_equal(last.result, 0);
    image_close(image);
    scripted_file_free(disk);
}

// On a device with old bytes: a refcount block is written as a whole when it gets its place, also
// where placing it failed at first.
static void a_refcount_block_is_written_as_a_whole(void **state)
{
    const unsigned cluster_bits = 13, per_block = 1024; // 64 bits each, two pieces a block
    struct scripted_file *disk = scripted_file_new();
    struct create_options create = {.size = 64u << 20,
                                    .version = 3,
                                    .cluster_bits = cluster_bits,
                                    .refcount_order = 6,
                                    .lazy_refcounts = 0};
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    unsigned char *data = calloc(1, per_block << cluster_bits);
    struct error err;

    (void)state;
    assert_non_null(data);
    scripted_file_create(disk, &create);
    memset(disk->bytes + disk->size, 0xff, 32u << 20);
    disk->size += 32u << 20;
    disk->file.fresh_is_zero = false;
    struct image *image = scripted_image_open(disk, &options);

    memset(data, 1, per_block << cluster_bits);
    assert_int_equal(scripted_write(disk, image, data, 0, 512), 0);
    assert_int_equal(flush(disk, image), 0);
    // The set of known tables is so full that one more takes memory.
    struct cluster_set *tables = &image->guard->tables;
    for (uint64_t far = 1ull << 40; tables->count * 2 < tables->capacity; far++)
        assert_int_equal(cluster_set_add(tables, far), 0);
    callocs_refused = tables->capacity * sizeof(*tables->slots);
    assert_int_equal(scripted_write(disk, image, data, 0, per_block << cluster_bits), 0);
    assert_true(image->alloc->fresh > per_block);
    assert_int_equal(image->refcounts->table[1], 0);
    // The dirty bit takes the place of the refcounts.
    assert_int_equal(flush(disk, image), 0);
    assert_true(dirty_bit_on(image->dirty_bit));
    callocs_refused = 0;

    assert_int_equal(flush(disk, image), 0);
    assert_int_equal(image_finish(image, &err), 0);
    uint64_t block = image->refcounts->table[1];
    assert_int_not_equal(block, 0);
    for (unsigned i = 0; i < per_block; i++)
        assert_int_equal(format_get64(disk->bytes + block + i * 8),
                         refcounts_get(image->refcounts, per_block + i));
    image_close(image);
    scripted_file_free(disk);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_dirty_bit_is_set_once),
        cmocka_unit_test(a_refcount_block_is_written_as_a_whole),
    };

    return cmocka_run_group_tests_name("no memory", tests, NULL, NULL);
}
