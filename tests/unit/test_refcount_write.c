// SPDX-License-Identifier: Apache-2.0
// test_refcount_write.c: refcounts from memory to disk: blocks before the table's entries, a moved
// table before the header's pointer, and failures of each.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/durable/refcount_write.h"
#include "qcow2/durable/sync_state.h"
#include "qcow2/format/format.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"
#include "tests/unit/engine.h"

#define CLUSTER 512u

// Refcounts of 64 bits: a block counts 64 clusters, and a cluster of the table has 64 blocks.
static const struct create_options wide = {
    .size = 16u << 20, .version = 3, .cluster_bits = 9, .refcount_order = 6};

static void begin(struct engine *e, bool lazy)
{
    struct create_options create = wide;

    create.lazy_refcounts = lazy;
    engine_begin(e, &create);
}

// Writes until the clusters that are taken are almost as many as the table can tell. Returns where
// the next one goes.
static uint64_t fill(struct engine *e)
{
    uint64_t covered = e->image->refcounts->table_size * 64, at = 0;

    do {
        assert_int_equal(engine_write(e, at, 16 * CLUSTER, 1), 0);
        at += 16 * CLUSTER;
        // Blocks take their clusters, too.
        assert_int_equal(engine_flush(e), 0);
    } while (e->image->alloc->fresh + 40 < covered);
    assert_false(e->image->refcounts->table_moved);
    engine_watch(e);
    return at;
}

// A block that reads as zeros would give away clusters in use.
static void a_new_block_lies_before_its_entry(void **state)
{
    struct engine e;

    (void)state;
    begin(&e, false);
    assert_int_equal(engine_write(&e, 0, 16 * CLUSTER, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    uint64_t at = 16 * CLUSTER;
    size_t page = e.image->alloc->fresh / 64 + 1;
    while (e.image->alloc->fresh < page * 64) {
        engine_watch(&e);
        assert_int_equal(engine_do(&e, OP_WRITE, OP_FUA, at, 8 * CLUSTER), 0);
        at += 8 * CLUSTER;
    }
    // Blocks, the barrier before the table's entries, one before the tables that need them.
    const char *blocks = strstr(e.order, "block");
    assert_non_null(blocks);
    assert_non_null(strstr(blocks, ". barrier. table. barrier. "));
    assert_int_equal(engine_count(&e, "table"), 1);
    assert_true(strstr(blocks, "l2") > strstr(blocks, "table. barrier."));
    engine_end(&e);
}

static void a_table_that_moves_lies_before_its_pointer(void **state)
{
    struct engine e;

    (void)state;
    begin(&e, false);
    uint64_t old = e.image->header.refcount_table_offset;
    uint64_t at = fill(&e);
    assert_int_equal(engine_write(&e, at, 64 * CLUSTER, 2), 0);
    assert_true(e.image->refcounts->table_moved);
    engine_watch(&e);
    assert_int_equal(engine_flush(&e), 0);
    const char *moved = strstr(e.order, "table. barrier. header. barrier. ");
    assert_non_null(moved);
    // The new table lies behind the blocks that it names, the L2 tables behind all of it.
    assert_true(moved - e.order > 9 && memcmp(moved - 9, "barrier. ", 9) == 0);
    assert_true(strstr(e.order, "l2") > moved);
    assert_false(e.image->refcounts->table_moved);
    uint64_t now = format_get64(e.disk->bytes + FORMAT_HEADER_REFCOUNT_TABLE_OFFSET);
    assert_int_not_equal(now, old);
    assert_int_equal(now, e.image->header.refcount_table_offset);
    // Its old clusters are free, but not before a sync that ends later.
    assert_int_equal(engine_refcount(&e, old), 1);
    assert_int_equal(engine_write(&e, at, 64 * CLUSTER, 3), 0);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, 0, CLUSTER), 0);
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(engine_refcount(&e, old), 0);
    engine_end(&e);
}

// Whatever of it fails: the old table stays in force, nothing is lost, and it is done again.
static void a_move_that_fails_is_begun_anew(void **state)
{
    static const char *const names[] = {"block", "table", "header"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct request flush;
        struct engine e;

        begin(&e, false);
        uint64_t at = fill(&e), old = e.image->header.refcount_table_offset;
        assert_int_equal(engine_write(&e, at, 64 * CLUSTER, 2), 0);
        engine_watch(&e);
        engine_start(&e, &flush, OP_FLUSH, 0, 0, 0);
        scripted_file_end(e.disk, engine_reach(&e, names[i]), -ENOSPC);
        engine_run(&e);
        // The dirty bit has taken the place of the refcounts.
        assert_int_equal(flush.op.result, 0);
        assert_int_equal(e.image->dirty_bit, DIRTY_BIT_SET);
        assert_int_equal(format_get64(e.disk->bytes + FORMAT_HEADER_REFCOUNT_TABLE_OFFSET), old);
        assert_int_equal(e.image->sync->refcounts.state, REFCOUNT_WRITE_PLACE);
        assert_true(refcounts_dirty(e.image->refcounts));
        engine_end(&e);
    }
}

// A barrier of the move that fails: nobody knows which table the header names.
static void a_barrier_of_a_move_that_fails_is_latched(void **state)
{
    struct request flush;
    struct engine e;
    struct error err;

    (void)state;
    begin(&e, false);
    uint64_t at = fill(&e);
    assert_int_equal(engine_write(&e, at, 64 * CLUSTER, 2), 0);
    engine_start(&e, &flush, OP_FLUSH, 0, 0, 0);
    // The one behind the pointer.
    engine_reach(&e, "header");
    scripted_file_end(e.disk, 0, 0);
    scripted_file_end(e.disk, engine_reach(&e, "barrier"), -EIO);
    engine_run(&e);
    assert_int_equal(flush.op.result, -EIO);
    assert_int_equal(e.image->latched_error, -EIO);
    assert_int_equal(engine_count(&e, "l2"), 0);
    assert_int_not_equal(image_finish(e.image, &err), 0);
    engine_free(&e);
}

// The table in memory may outgrow the one that was placed, before that is written.
static void a_table_that_grows_while_it_is_placed(void **state)
{
    struct engine e;

    (void)state;
    begin(&e, false);
    uint64_t at = fill(&e);
    assert_int_equal(engine_write(&e, at, 64 * CLUSTER, 2), 0);
    struct refcount_write *rw = &e.image->sync->refcounts;
    uint64_t first = e.image->alloc->fresh;
    // As place() leaves it when it has to wait for a page.
    rw->moving = true;
    rw->table_first = first;
    rw->table_clusters = 1;
    assert_int_equal(refcounts_set(e.image->refcounts, first, 1), 0);
    e.image->alloc->fresh++;
    assert_int_equal(engine_flush(&e), 0);
    assert_int_not_equal(e.image->header.refcount_table_offset, first * CLUSTER);
    assert_int_equal(e.image->header.refcount_table_clusters, e.image->refcounts->table_size / 64);
    // The place that was too small is given up.
    engine_end(&e);
}

// Many blocks go out in batches; those whose refcounts came and went need none.
static void many_blocks_are_written_in_batches(void **state)
{
    struct engine e;

    (void)state;
    begin(&e, true);
    for (uint64_t at = 0; at < 12u << 20; at += 1u << 20)
        assert_int_equal(engine_write(&e, at, 1u << 20, 1), 0);
    assert_true(e.image->refcounts->dirty_pages > 300);
    // All of it is given up again: but for the L2 tables no page counts anything.
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(engine_do(&e, OP_DISCARD, OP_FUA, 1u << 20, 8u << 20), 0);
    engine_run(&e);
    engine_end(&e);
}

static void pages_that_count_nothing_get_no_block(void **state)
{
    struct engine e;

    (void)state;
    begin(&e, true);
    assert_int_equal(engine_write(&e, 0, 1u << 20, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    uint64_t page = 20;
    assert_true(e.image->refcounts->pages[page].any_dirty);
    for (uint64_t i = 0; i < 64; i++)
        assert_int_equal(refcounts_set(e.image->refcounts, page * 64 + i, 0), 0);
    struct error err;
    assert_int_equal(image_finish(e.image, &err), 0);
    assert_int_equal(e.image->refcounts->table[page], 0);
    assert_int_not_equal(e.image->refcounts->table[page + 1], 0);
    assert_int_equal(e.image->refcounts->dirty_pages, 0);
    engine_free(&e);
}

static void note_clean(void *context, int result)
{
    (void)result;
    *(bool *)context = true;
}

// A cluster is taken in a page without a block while others are being written: that page waits for
// the next time.
static void a_page_that_comes_meanwhile_waits(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    begin(&e, true);
    assert_int_equal(engine_write(&e, 0, 30 * CLUSTER, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    bool called = false;
    image_clean(e.image, note_clean, &called);
    engine_reach(&e, "block");
    engine_start(&e, &write, OP_WRITE, 0, 30 * CLUSTER, 200 * CLUSTER);
    engine_hold(&e, "block");
    assert_int_equal(write.done, 1);
    engine_run(&e);
    assert_true(called);
    assert_int_equal(write.op.result, 0);
    assert_true(refcounts_dirty(e.image->refcounts));
    assert_int_equal(e.image->refcounts->table[3], 0);
    engine_end(&e);
}

// A place that looks fresh is known to be metadata: neither a block nor a table is put there.
static void no_block_over_metadata(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct engine e;

        begin(&e, false);
        uint64_t at = i == 0 ? 0 : fill(&e);
        assert_int_equal(engine_write(&e, at, 64 * CLUSTER, 1), 0);
        // The blocks come first, then the table.
        uint64_t place = e.image->alloc->fresh;
        for (uint64_t page = 0; i == 1 && page < e.image->refcounts->table_size; page++)
            place += page * 64 < e.image->alloc->fresh && e.image->refcounts->table[page] == 0;
        assert_int_equal(guard_add(e.image, place * CLUSTER), 0);
        assert_int_equal(engine_flush(&e), -EIO);
        assert_true(engine_said(&e, "would have overwritten an L2 table or refcount block"));
        engine_free(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_block_lies_before_its_entry),
        cmocka_unit_test(a_table_that_moves_lies_before_its_pointer),
        cmocka_unit_test(a_move_that_fails_is_begun_anew),
        cmocka_unit_test(a_barrier_of_a_move_that_fails_is_latched),
        cmocka_unit_test(a_table_that_grows_while_it_is_placed),
        cmocka_unit_test(many_blocks_are_written_in_batches),
        cmocka_unit_test(pages_that_count_nothing_get_no_block),
        cmocka_unit_test(a_page_that_comes_meanwhile_waits),
        cmocka_unit_test(no_block_over_metadata),
    };

    return cmocka_run_group_tests_name("refcount_write", tests, NULL, NULL);
}
