// SPDX-License-Identifier: Apache-2.0
// test_punch.c: free clusters go back to the host, late, and never under a new owner.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/format/format.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/refcount.h"
#include "tests/unit/engine.h"

#define CLUSTER 65536u

// Eight guest clusters are mapped and durable, in a row in the file.
static uint64_t begin(struct engine *e)
{
    engine_begin(e, &engine_large);
    assert_int_equal(engine_write(e, 0, 8 * CLUSTER, 1), 0);
    assert_int_equal(engine_flush(e), 0);
    engine_watch(e);
    return engine_disk_entry(e, 0) & FORMAT_L2_OFFSET_MASK;
}

static void discard(struct engine *e, uint64_t cluster, uint64_t count)
{
    assert_int_equal(engine_do(e, OP_DISCARD, OP_FUA, cluster * CLUSTER, count * CLUSTER), 0);
}

// A sync, with something to write.
static void another_sync(struct engine *e)
{
    assert_int_equal(engine_write(e, 7 * CLUSTER, 512, 3), 0);
    assert_int_equal(engine_flush(e), 0);
}

static void two_syncs_pass_before_a_hole(void **state)
{
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    discard(&e, 0, 2);
    assert_false(punch_idle(e.image->punch));
    another_sync(&e);
    assert_int_equal(engine_count(&e, "punch"), 0);
    assert_int_equal(e.disk->bytes[host], 1);
    another_sync(&e);
    assert_int_equal(engine_count(&e, "punch"), 1);
    assert_int_equal(e.disk->bytes[host], 0);
    assert_int_equal(e.disk->bytes[host + 2 * CLUSTER - 1], 0);
    assert_int_equal(e.disk->bytes[host + 2 * CLUSTER], 1);
    assert_int_equal(engine_refcount(&e, host), 0);
    assert_true(punch_idle(e.image->punch));
    engine_end(&e);
}

static void at_a_tick_all_is_due(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    discard(&e, 0, 2);
    assert_true(image_tick(e.image));
    engine_run(&e);
    assert_int_equal(engine_count(&e, "punch"), 1);
    assert_false(image_tick(e.image));
    engine_end(&e);
}

// A cluster that was taken again holds data. Free clusters around it are punched.
static void no_hole_under_a_new_owner(void **state)
{
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    discard(&e, 0, 3);
    assert_int_equal(refcounts_set(e.image->refcounts, host / CLUSTER + 1, 1), 0);
    image_tick(e.image);
    engine_run(&e);
    assert_int_equal(engine_count(&e, "punch"), 2);
    assert_int_equal(e.disk->bytes[host], 0);
    assert_int_equal(e.disk->bytes[host + CLUSTER], 1);
    assert_int_equal(e.disk->bytes[host + 2 * CLUSTER], 0);
    engine_free(&e);
}

// A cluster cannot be taken while its hole is punched; afterwards it can.
static void who_looks_for_space_finds_other_clusters_meanwhile(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    discard(&e, 0, 2);
    image_tick(e.image);
    engine_hold(&e, "punch");
    assert_true(engine_in_flight(&e, "punch"));
    engine_start(&e, &write, OP_WRITE, 0, 9 * CLUSTER, CLUSTER);
    engine_hold(&e, "punch");
    assert_int_equal(write.done, 1);
    assert_true((engine_entry(&e, 9) & FORMAT_L2_OFFSET_MASK) >= host + 8 * CLUSTER);
    engine_run(&e);
    assert_int_equal(engine_write(&e, 10 * CLUSTER, CLUSTER, 4), 0);
    assert_int_equal(engine_entry(&e, 10) & FORMAT_L2_OFFSET_MASK, host);
    engine_end(&e);
}

// A host that cannot punch is asked once; other errors change nothing.
static void a_host_that_cannot_punch(void **state)
{
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    discard(&e, 0, 1);
    image_tick(e.image);
    scripted_file_end(e.disk, engine_reach(&e, "punch"), -EIO);
    engine_run(&e);
    assert_true(e.image->punch->enabled);
    assert_int_equal(engine_refcount(&e, host), 0);

    discard(&e, 2, 1);
    discard(&e, 4, 1);
    image_tick(e.image);
    scripted_file_end(e.disk, engine_reach(&e, "punch"), -EOPNOTSUPP);
    engine_run(&e);
    assert_int_equal(engine_count(&e, "punch"), 2);
    assert_true(punch_idle(e.image->punch));
    discard(&e, 5, 1);
    assert_true(punch_idle(e.image->punch));
    engine_end(&e);
}

static void without_unmap_nothing_is_punched(void **state)
{
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    struct engine e;

    (void)state;
    engine_begin_with(&e, &engine_large, &options);
    assert_int_equal(engine_write(&e, 0, CLUSTER, 1), 0);
    discard(&e, 0, 1);
    assert_false(image_tick(e.image));
    assert_int_equal(engine_count(&e, "punch"), 0);
    engine_end(&e);
}

// Many small extents are looked at in turns; a punch has a limit of clusters.
static void much_is_punched_in_turns(void **state)
{
    struct create_options create = engine_small;
    struct engine e;
    uint64_t clusters = 3 * PUNCH_EXTENTS_A_TURN;

    (void)state;
    create.lazy_refcounts = true;
    engine_begin(&e, &create);
    assert_int_equal(engine_write(&e, 0, clusters * 512, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    uint64_t first = e.image->alloc->fresh - clusters;
    // Every other one was freed, and is taken again.
    for (uint64_t i = 0; i < clusters; i += 2)
        punch_add(e.image, first + i, 1);
    assert_int_equal(e.image->punch->count, clusters / 2);
    image_tick(e.image);
    assert_true(scripted_file_turn(e.disk));
    assert_int_equal(e.image->punch->count, clusters / 2 - PUNCH_EXTENTS_A_TURN);
    engine_run(&e);
    assert_true(punch_idle(e.image->punch));
    assert_int_equal(engine_count(&e, "punch"), 0);
    engine_end(&e);
}

// Extents beyond the limit keep their host space, and are free nevertheless.
static void what_is_remembered_is_bounded(void **state)
{
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    e.image->punch->count = PUNCH_EXTENTS_MAX;
    discard(&e, 0, 1);
    assert_int_equal(engine_refcount(&e, host), 0);
    assert_int_equal(e.image->punch->count, PUNCH_EXTENTS_MAX);
    e.image->punch->count = 0;
    assert_true(STAILQ_EMPTY(&e.image->punch->young));
    engine_end(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_syncs_pass_before_a_hole),
        cmocka_unit_test(at_a_tick_all_is_due),
        cmocka_unit_test(no_hole_under_a_new_owner),
        cmocka_unit_test(who_looks_for_space_finds_other_clusters_meanwhile),
        cmocka_unit_test(a_host_that_cannot_punch),
        cmocka_unit_test(without_unmap_nothing_is_punched),
        cmocka_unit_test(much_is_punched_in_turns),
        cmocka_unit_test(what_is_remembered_is_bounded),
    };

    return cmocka_run_group_tests_name("punch", tests, NULL, NULL);
}
