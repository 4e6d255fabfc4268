// SPDX-License-Identifier: Apache-2.0
// test_clean.c: clean points: refcounts are durable before the dirty bit is cleared, and only when
// no change is under way.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/loan.h"
#include "qcow2/durable/clean.h"
#include "qcow2/durable/lost.h"
#include "qcow2/format/format.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/quarantine.h"
#include "tests/unit/engine.h"

#define CLUSTER 65536u

struct outcome {
    unsigned called;
    int result;
};

static void note(void *context, int result)
{
    struct outcome *outcome = context;

    outcome->called++;
    outcome->result = result;
}

static void begin(struct engine *e)
{
    engine_begin(e, &engine_large);
    assert_int_equal(engine_write(e, 0, 4 * CLUSTER, 1), 0);
    assert_int_equal(engine_flush(e), 0);
    engine_watch(e);
}

static int clean(struct engine *e)
{
    struct outcome outcome = {0};

    image_clean(e->image, note, &outcome);
    engine_run(e);
    assert_int_equal(outcome.called, 1);
    return outcome.result;
}

static bool dirty_on_disk(const struct engine *e)
{
    return format_get64(e->disk->bytes + FORMAT_HEADER_INCOMPATIBLE) & HEADER_INCOMPATIBLE_DIRTY;
}

static void refcounts_are_durable_before_the_dirty_bit_goes(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    assert_true(image_needs_clean(e.image));
    assert_true(dirty_on_disk(&e));
    assert_int_equal(clean(&e), 0);
    assert_string_equal(e.order, "block. barrier. header. barrier.");
    assert_false(dirty_on_disk(&e));
    assert_false(image_needs_clean(e.image));
    assert_int_equal(engine_faults(&e), 0);
    // Once more costs nothing; the next change sets it again.
    engine_watch(&e);
    assert_int_equal(clean(&e), 0);
    assert_string_equal(e.order, "");
    assert_int_equal(engine_do(&e, OP_WRITE, OP_FUA, 9 * CLUSTER, 512), 0);
    assert_true(dirty_on_disk(&e));
    engine_end(&e);
}

// Given-up clusters are released, and their holes punched, before refcounts are written.
static void what_was_given_up_is_released_first(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t host = engine_disk_entry(&e, 1) & FORMAT_L2_OFFSET_MASK;
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, CLUSTER, CLUSTER), 0);
    assert_int_equal(clean(&e), 0);
    assert_string_equal(e.order, "l2. barrier. punch. block. barrier. header. barrier.");
    assert_int_equal(engine_refcount(&e, host), 0);
    assert_int_equal(engine_faults(&e), 0);
    engine_end(&e);
}

// A request that is under way may have taken clusters that nothing refers to yet.
static void a_request_under_way_is_in_the_way(void **state)
{
    struct outcome outcome = {0};
    struct request write;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &write, OP_WRITE, 0, 9 * CLUSTER, 512);
    engine_hold(&e, "data");
    image_clean(e.image, note, &outcome);
    engine_hold(&e, "data");
    assert_int_equal(outcome.called, 1);
    assert_int_equal(outcome.result, -EBUSY);
    assert_true(dirty_on_disk(&e));
    engine_run(&e);
    // One that comes when refcounts are on their way already keeps the bit, too.
    outcome = (struct outcome){0};
    image_clean(e.image, note, &outcome);
    engine_hold(&e, "block");
    struct request other;
    engine_start(&e, &other, OP_WRITE, 0, 10 * CLUSTER, 512);
    engine_hold(&e, "data");
    assert_int_equal(outcome.called, 1);
    assert_int_equal(outcome.result, -EBUSY);
    assert_true(dirty_on_disk(&e));
    engine_run(&e);
    engine_end(&e);
}

// Without lazy refcounts there is no dirty bit to go, but the barrier behind the refcounts counts.
static void a_barrier_behind_refcounts_fails(void **state)
{
    struct outcome outcome = {0};
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_small);
    assert_int_equal(engine_write(&e, 0, 4096, 1), 0);
    assert_int_equal(engine_do(&e, OP_DISCARD, OP_FUA, 0, 512), 0);
    engine_run(&e);
    image_clean(e.image, note, &outcome);
    engine_hold(&e, "block");
    size_t index = engine_reach(&e, "barrier");
    scripted_file_end(e.disk, index, -EIO);
    engine_run(&e);
    assert_int_equal(outcome.called, 1);
    assert_int_equal(outcome.result, -EIO);
    assert_int_equal(e.image->latched_error, -EIO);
    engine_free(&e);
}

// A cluster on loan is given up, and the unlinking is durable, while holes are punched: its
// refcount is still too high.
static void a_loan_at_the_wrong_time_is_in_the_way(void **state)
{
    struct outcome outcome = {0};
    struct extent extents[4];
    struct request read, discard;
    struct engine e;
    char bytes[512];

    (void)state;
    begin(&e);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, CLUSTER, CLUSTER), 0);
    image_clean(e.image, note, &outcome);
    engine_hold(&e, "punch");
    e.disk->makes_loans = true;
    engine_start(&e, &read, OP_READ, 0, 0, sizeof(bytes));
    engine_hold(&e, "punch");
    read.op = (struct op){.kind = OP_READ,
                          .flags = OP_LOAN,
                          .length = sizeof(bytes),
                          .buf = bytes,
                          .done = read.op.done,
                          .extents = extents,
                          .max_extents = 4};
    op_start(e.image, &read.op);
    engine_hold(&e, "punch");
    assert_non_null(read.op.loan.file);
    engine_start(&e, &discard, OP_DISCARD, OP_FUA, 0, CLUSTER);
    engine_hold(&e, "punch");
    assert_int_equal(discard.done, 1);
    assert_false(quarantine_empty(e.image->quarantine));
    engine_run(&e);
    assert_int_equal(outcome.called, 1);
    assert_int_equal(outcome.result, -EBUSY);
    assert_true(dirty_on_disk(&e));
    loan_return(&read.op.loan, extents, read.op.extent_count);
    engine_run(&e);
    engine_end(&e);
}

static void a_discard_at_the_wrong_time_is_in_the_way(void **state)
{
    struct outcome outcome = {0};
    struct request read, discard;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &read, OP_READ, 0, CLUSTER, 512);
    engine_hold(&e, "read-data");
    engine_start(&e, &discard, OP_DISCARD, 0, CLUSTER, CLUSTER);
    engine_hold(&e, "read-data");
    // The quarantine cannot empty under the reader; something else is given up meanwhile.
    image_clean(e.image, note, &outcome);
    engine_hold(&e, "read-data");
    assert_int_equal(outcome.called, 0);
    engine_start(&e, &discard, OP_DISCARD, 0, 2 * CLUSTER, CLUSTER);
    engine_hold(&e, "read-data");
    assert_int_equal(outcome.called, 1);
    assert_int_equal(outcome.result, -EBUSY);
    engine_run(&e);
    assert_int_equal(clean(&e), 0);
    engine_end(&e);
}

// The dirty bit stays, or counts as set, whatever fails.
static void failures(void **state)
{
    static const struct {
        const char *name;
        unsigned nth;
        int error, result;
        bool latched;
        enum dirty_bit bit;
    } rows[] = {
        {"block", 1, -ENOSPC, -ENOSPC, false, DIRTY_BIT_SET},
        {"block", 1, -EIO, -EIO, true, DIRTY_BIT_SET},
        {"barrier", 1, -EIO, -EIO, true, DIRTY_BIT_SET},
        {"header", 1, -ENOSPC, -ENOSPC, false, DIRTY_BIT_UNSURE},
        {"header", 1, -EIO, -EIO, true, DIRTY_BIT_UNSURE},
        {"barrier", 2, -ENOSPC, -EIO, true, DIRTY_BIT_UNSURE},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct outcome outcome = {0};
        struct engine e;

        begin(&e);
        image_clean(e.image, note, &outcome);
        for (unsigned n = 1; n <= rows[i].nth; n++)
            scripted_file_end(e.disk, engine_reach(&e, rows[i].name),
                              n == rows[i].nth ? rows[i].error : 0);
        engine_run(&e);
        assert_int_equal(outcome.called, 1);
        assert_int_equal(outcome.result, rows[i].result);
        assert_int_equal(e.image->latched_error < 0, rows[i].latched);
        assert_int_equal(e.image->dirty_bit, rows[i].bit);
        if (rows[i].latched) {
            assert_false(image_needs_clean(e.image));
            engine_free(&e);
            continue;
        }
        assert_int_equal(clean(&e), 0);
        assert_false(dirty_on_disk(&e));
        engine_end(&e);
    }
}

// A sync that fails ends the clean point.
static void without_a_sync_there_is_no_clean_point(void **state)
{
    struct outcome outcome = {0};
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 1), 0);
    image_clean(e.image, note, &outcome);
    scripted_file_end(e.disk, engine_reach(&e, "l2"), -ENOSPC);
    engine_run(&e);
    assert_int_equal(outcome.result, -ENOSPC);
    assert_true(image_needs_clean(e.image));
    engine_end(&e);
}

static void an_image_that_is_only_read_needs_none(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    engine_crash(&e, &(struct image_options){.format = IMAGE_FORMAT_QCOW2, .read_only = true});
    assert_false(image_needs_clean(e.image));
    assert_false(image_tick(e.image));
    engine_free(&e);
}

// ---- What is lost at a bad end (lost.c) ---------------------------------------------------------

static void clusters_that_the_disk_does_not_have(void **state)
{
    struct lost lost;
    struct engine e;

    (void)state;
    begin(&e);
    lost_count(e.image, &lost);
    assert_int_equal(lost.clusters + lost.error, 0);
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 1), 0);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, CLUSTER, CLUSTER), 0);
    assert_int_equal(engine_write(&e, 0, 512, 2), 0); // in place
    lost_count(e.image, &lost);
    assert_int_equal(lost.clusters, 2);
    assert_int_equal(lost.bytes, 2 * CLUSTER);
    assert_int_equal(lost.first, CLUSTER);
    assert_int_equal(lost.end, 10 * CLUSTER);
    assert_int_equal(lost.error, 0);
    e.disk->fail_kind = FILE_READ;
    e.disk->fail_length = UINT64_MAX / 2;
    e.disk->fail_error = -EIO;
    lost_count(e.image, &lost);
    assert_int_equal(lost.error, -EIO);
    e.disk->fail_length = 0;
    assert_int_equal(engine_flush(&e), 0);
    lost_count(e.image, &lost);
    assert_int_equal(lost.clusters, 0);
    engine_end(&e);
}

// A table that the disk does not name yet, and one that a copy has replaced.
static void tables_that_the_disk_does_not_have(void **state)
{
    struct lost lost;
    struct engine e;

    (void)state;
    begin(&e);
    engine_snapshot(&e);
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 1), 0);
    lost_count(e.image, &lost);
    assert_int_equal(lost.clusters, 1);
    assert_int_equal(lost.first, 9 * CLUSTER);
    engine_end(&e);

    engine_begin(&e, &engine_small);
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    assert_int_equal(engine_write(&e, (4u << 20) - 512, 512, 1), 0);
    lost_count(e.image, &lost);
    assert_int_equal(lost.clusters, 2);
    assert_int_equal(lost.end, 4u << 20);
    engine_end(&e);
}

// A disk ends inside its last cluster; the first that is lost need not be found first.
static void what_is_lost_ends_with_the_disk(void **state)
{
    struct create_options create = engine_large;
    struct lost lost;
    struct engine e;

    (void)state;
    create.size = 10 * CLUSTER + 512;
    engine_begin(&e, &create);
    assert_int_equal(engine_write(&e, 10 * CLUSTER, 512, 1), 0);
    assert_int_equal(engine_write(&e, 2 * CLUSTER, 512, 1), 0);
    lost_count(e.image, &lost);
    assert_int_equal(lost.clusters, 2);
    assert_int_equal(lost.bytes, CLUSTER + 512);
    assert_int_equal(lost.first, 2 * CLUSTER);
    assert_int_equal(lost.end, 10 * CLUSTER + 512);
    // The table maps more than the disk has.
    struct slice *slice = TAILQ_FIRST(&e.image->cache->dirty);
    slice->entries[11] = slice->entries[10];
    lost_count(e.image, &lost);
    assert_int_equal(lost.clusters, 2);
    slice->entries[11] = 0;
    engine_end(&e);
}

// Tables that cannot be read are said not to be counted.
static void what_cannot_be_compared(void **state)
{
    struct lost lost;
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 1), 0);
    e.disk->fail_kind = FILE_READ;
    e.disk->fail_offset = e.image->l1.entries[0] & FORMAT_L1_OFFSET_MASK;
    e.disk->fail_length = 1;
    e.disk->fail_error = -EIO;
    lost_count(e.image, &lost);
    assert_int_equal(lost.clusters, 0);
    assert_int_equal(lost.error, -EIO);
    e.disk->fail_length = 0;
    engine_end(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refcounts_are_durable_before_the_dirty_bit_goes),
        cmocka_unit_test(what_was_given_up_is_released_first),
        cmocka_unit_test(a_request_under_way_is_in_the_way),
        cmocka_unit_test(a_barrier_behind_refcounts_fails),
        cmocka_unit_test(a_loan_at_the_wrong_time_is_in_the_way),
        cmocka_unit_test(a_discard_at_the_wrong_time_is_in_the_way),
        cmocka_unit_test(failures),
        cmocka_unit_test(without_a_sync_there_is_no_clean_point),
        cmocka_unit_test(an_image_that_is_only_read_needs_none),
        cmocka_unit_test(clusters_that_the_disk_does_not_have),
        cmocka_unit_test(tables_that_the_disk_does_not_have),
        cmocka_unit_test(what_is_lost_ends_with_the_disk),
        cmocka_unit_test(what_cannot_be_compared),
    };

    return cmocka_run_group_tests_name("clean", tests, NULL, NULL);
}
