// SPDX-License-Identifier: Apache-2.0
// test_chain.c: finding a guest range in a chain of images, remembering the layer, and the effect
// of a write to the first image.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/mapping/chain.h"
#include "tests/unit/engine.h"

#define CLUSTER 512u
#define PLACE (1u << CHAIN_PLACE_BITS)

// An image of 4 MiB over one of 1 MiB, in which every other cluster of the first 128 KiB is mapped.
// Both have a cache of cache_bytes.
static void begin(struct engine *e, size_t cache_bytes)
{
    struct create_options below = engine_small, top = engine_small;
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2, .cache_bytes = cache_bytes};
    unsigned char data[CLUSTER];
    struct error err;

    *e = (struct engine){.disk = scripted_file_new()};
    struct scripted_file *behind = scripted_file_new_behind(e->disk);
    below.size = 1u << 20;
    scripted_file_create(behind, &below);
    struct image *image = scripted_image_open(behind, &options);
    memset(data, 5, sizeof(data));
    for (uint64_t at = 0; at < 2 * PLACE; at += 2 * CLUSTER)
        assert_int_equal(scripted_write(behind, image, data, at, CLUSTER), 0);
    assert_int_equal(image_finish(image, &err), 0);
    image_close(image);
    top.backing_name = "behind";
    top.backing_format = "qcow2";
    scripted_file_create(e->disk, &top);
    behind->file.read_only = true;
    engine_open(e, &options);
}

static unsigned reads_below(const struct engine *e)
{
    return e->disk->behind->submitted[FILE_READ];
}

static void the_first_image_that_has_it(void **state)
{
    struct extent extents[8];
    struct op status = {.kind = OP_BLOCK_STATUS, .extents = extents, .max_extents = 8};
    struct engine e;

    (void)state;
    begin(&e, 0);
    assert_int_equal(engine_write(&e, 2 * CLUSTER, CLUSTER, 7), 0);
    engine_expect(&e, 0, CLUSTER, 5);
    engine_expect(&e, CLUSTER, CLUSTER, 0);
    engine_expect(&e, 2 * CLUSTER, CLUSTER, 7);
    engine_expect(&e, 1u << 20, CLUSTER, 0); // behind the end of the backing image
    status.length = 3 * CLUSTER;
    assert_int_equal(scripted_op(e.disk, e.image, &status), 0);
    assert_int_equal(status.extent_count, 3);
    assert_int_equal(extents[0].depth, 2);
    assert_int_equal(extents[1].depth, 0);
    assert_int_equal(extents[2].depth, 1);
    assert_int_equal(image_finish(e.image, &(struct error){0}), 0);
    engine_free(&e);
}

// Backing images do not change: the layer of a whole place is looked up once.
static void what_was_found_below_is_remembered(void **state)
{
    struct engine e;

    (void)state;
    begin(&e, 0);
    engine_expect(&e, 0, CLUSTER, 5);
    unsigned before = reads_below(&e);
    engine_expect(&e, 0, CLUSTER, 5);
    assert_int_equal(reads_below(&e), before + 1); // the data alone
    // Zeros beyond the end of the backing image: the rest of the place is looked up at once.
    engine_expect(&e, 2u << 20, CLUSTER, 0);
    before = reads_below(&e);
    engine_expect(&e, (2u << 20) + PLACE / 2, CLUSTER, 0);
    assert_int_equal(reads_below(&e), before);
    engine_free(&e);
}

// An answer about backing images tells nothing of the first image.
static void a_write_to_the_first_image_is_seen(void **state)
{
    struct engine e;

    (void)state;
    begin(&e, 0);
    engine_expect(&e, 0, CLUSTER, 5);
    engine_expect(&e, 2u << 20, CLUSTER, 0);
    assert_int_equal(engine_write(&e, 0, CLUSTER, 8), 0);
    assert_int_equal(engine_write(&e, 2u << 20, CLUSTER, 9), 0);
    engine_expect(&e, 0, CLUSTER, 8);
    engine_expect(&e, 2u << 20, CLUSTER, 9);
    // Its neighbours still come from the backing image.
    engine_expect(&e, CLUSTER, CLUSTER, 0);
    engine_expect(&e, 2 * CLUSTER, CLUSTER, 5);
    // After a discard it does not show the old bytes again.
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, 0, CLUSTER), 0);
    engine_expect(&e, 0, CLUSTER, 0);
    assert_int_equal(image_finish(e.image, &(struct error){0}), 0);
    engine_free(&e);
}

// A read that waits for a backing image may see a write that comes meanwhile, or not. But it does
// not go on with its old knowledge of the first image.
static void a_lookup_that_waited_begins_anew_after_a_change(void **state)
{
    static unsigned char found[CLUSTER];
    struct request read, write;
    struct engine e;

    (void)state;
    begin(&e, 0);
    engine_fill(8);
    engine_start(&e, &read, OP_READ, 0, 0, CLUSTER);
    read.op.buf = found;
    scripted_file_turns(e.disk);
    assert_int_equal(e.disk->behind->queued, 1); // its slice
    engine_start(&e, &write, OP_WRITE, 0, 0, CLUSTER);
    while (write.done == 0) {
        scripted_file_turns(e.disk);
        if (e.disk->queued > 0)
            scripted_file_end(e.disk, 0, 0);
    }
    engine_run(&e);
    assert_int_equal(read.done, 1);
    assert_int_equal(found[0], 8);
    assert_int_equal(image_finish(e.image, &(struct error){0}), 0);
    engine_free(&e);
}

// A cache of two slices for each image is enough to read everything, and places are right.
static void a_small_cache_will_do(void **state)
{
    struct engine e;

    (void)state;
    begin(&e, 1);
    for (unsigned round = 0; round < 2; round++) {
        for (uint64_t at = 0; at < 2 * PLACE; at += 8 * CLUSTER) {
            engine_expect(&e, at, CLUSTER, 5);
            engine_expect(&e, at + CLUSTER, CLUSTER, 0);
        }
        engine_expect(&e, (1u << 20) - CLUSTER, 2 * CLUSTER, 0);
    }
    engine_free(&e);
}

// An error of a backing image is the read's error, and is not remembered.
static void an_error_below(void **state)
{
    struct request read;
    struct engine e;

    (void)state;
    begin(&e, 0);
    engine_start(&e, &read, OP_READ, 0, 0, CLUSTER);
    scripted_file_turns(e.disk);
    scripted_file_end(e.disk->behind, 0, -EIO);
    engine_run(&e);
    assert_int_equal(read.op.result, -EIO);
    engine_expect(&e, 0, CLUSTER, 5);
    engine_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_image_that_has_it),
        cmocka_unit_test(what_was_found_below_is_remembered),
        cmocka_unit_test(a_write_to_the_first_image_is_seen),
        cmocka_unit_test(a_lookup_that_waited_begins_anew_after_a_change),
        cmocka_unit_test(a_small_cache_will_do),
        cmocka_unit_test(an_error_below),
    };

    return cmocka_run_group_tests_name("chain", tests, NULL, NULL);
}
