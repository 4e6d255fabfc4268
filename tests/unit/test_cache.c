// SPDX-License-Identifier: Apache-2.0
// test_cache.c: L2 slices in memory, with room for two: eviction, joining a load, waiting for room.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/format/format.h"
#include "qcow2/mapping/cache.h"
#include "tests/unit/engine.h"

#define TABLE 32768u // guest bytes that a table of 512 bytes maps

static const struct image_options two_slices = {.format = IMAGE_FORMAT_QCOW2, .cache_bytes = 1};

// An image with eight tables on disk, each of which maps its first cluster, and an empty cache.
static void begin(struct engine *e)
{
    struct error err;

    engine_begin(e, &engine_small);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(engine_write(e, i * TABLE, 512, (int)i + 1), 0);
    assert_int_equal(image_finish(e->image, &err), 0);
    engine_crash(e, &two_slices);
    assert_int_equal(e->image->cache->max, CACHE_SLICES_MIN);
}

static bool in_memory(const struct engine *e, unsigned table)
{
    return cache_has(e->image->cache, e->image->l1.entries[table] & FORMAT_L1_OFFSET_MASK,
                     e->image->geometry.piece_bits);
}

static void the_one_not_looked_at_leaves(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    engine_expect(&e, 0 * TABLE, 512, 1);
    engine_expect(&e, 1 * TABLE, 512, 2);
    engine_expect(&e, 2 * TABLE, 512, 3);
    assert_int_equal(e.image->cache->count, 2);
    // The hand cleared the marks of 0 and 1, and chose 0. 1 is looked at again and stays.
    assert_false(in_memory(&e, 0));
    engine_expect(&e, 1 * TABLE, 512, 2);
    e.image->cache->clock.tqh_first->referenced = true;
    engine_expect(&e, 3 * TABLE, 512, 4);
    assert_int_equal(e.image->cache->count, 2);
    assert_true(in_memory(&e, 3));
    engine_end(&e);
}

static void equal_misses_join_the_first(void **state)
{
    struct request reads[3];
    struct engine e;

    (void)state;
    begin(&e);
    for (size_t i = 0; i < 3; i++)
        engine_start(&e, &reads[i], OP_READ, 0, 512 * (i % 2), 512);
    scripted_file_turns(e.disk);
    assert_string_equal(e.order, "read-l2");
    assert_false(in_memory(&e, 0));
    engine_run(&e);
    assert_string_equal(e.order, "read-l2. read-data read-data..");
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(reads[i].done, 1);
    engine_end(&e);
}

// All ops that joined the load see the error. The slice is gone, and the next op tries again.
static void a_failed_load_is_told_to_all(void **state)
{
    struct request reads[2];
    struct engine e;

    (void)state;
    begin(&e);
    for (size_t i = 0; i < 2; i++)
        engine_start(&e, &reads[i], OP_READ, 0, 0, 512);
    scripted_file_end(e.disk, engine_reach(&e, "read-l2"), -EIO);
    engine_run(&e);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(reads[i].done, 1);
        assert_int_equal(reads[i].op.result, -EIO);
    }
    assert_true(engine_said(&e, "cannot read the L2 table"));
    assert_int_equal(e.image->cache->count, 0);
    engine_expect(&e, 0, 512, 1);
    engine_end(&e);
}

// A dirty slice is the only copy of its entries.
static void a_dirty_slice_stays(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_write(&e, 512, 512, 77), 0);
    for (unsigned i = 1; i < 8; i++)
        engine_expect(&e, i * TABLE, 512, (int)i + 1);
    assert_true(in_memory(&e, 0));
    assert_int_equal(engine_count(&e, "l2"), 0);
    engine_expect(&e, 512, 512, 77);
    engine_end(&e);
}

// A slice whose copy is being written stays, too: reading it again might give old entries.
static void a_slice_that_is_being_written_stays(void **state)
{
    struct request flush;
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_write(&e, 512, 512, 77), 0);
    engine_start(&e, &flush, OP_FLUSH, 0, 0, 0);
    engine_hold(&e, "l2");
    struct request reads[3];
    for (unsigned i = 0; i < 3; i++)
        engine_start(&e, &reads[i], OP_READ, 0, (i + 1) * TABLE, 512);
    engine_hold(&e, "l2");
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(reads[i].done, 1);
    assert_true(in_memory(&e, 0));
    engine_run(&e);
    engine_end(&e);
}

// An op that finds every slice busy is woken when one is not.
static void who_finds_no_room_waits(void **state)
{
    struct request reads[3];
    struct engine e;

    (void)state;
    begin(&e);
    for (unsigned i = 0; i < 3; i++)
        engine_start(&e, &reads[i], OP_READ, 0, i * TABLE, 512);
    scripted_file_turns(e.disk);
    assert_int_equal(e.disk->queued, 2);
    assert_string_equal(reads[2].op.wait.event, "an L2 slice to be free");
    scripted_file_end(e.disk, 0, 0);
    engine_run(&e);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(reads[i].done, 1);
        assert_int_equal(reads[i].op.result, 0);
    }
    engine_end(&e);
}

// Half of the slices may be dirty. Further changes wait for a sync, which they request.
static void too_many_dirty_slices_start_a_sync(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(e.image->cache->dirty_max, 1);
    assert_int_equal(engine_write(&e, 512, 512, 7), 0);
    engine_watch(&e);
    engine_start(&e, &write, OP_WRITE, 0, TABLE + 512, 512);
    engine_reach(&e, "l2");
    assert_int_equal(write.done, 0);
    engine_run(&e);
    assert_int_equal(write.done, 1);
    assert_int_equal(write.op.result, 0);
    assert_int_equal(e.image->cache->dirty_count, 1);
    engine_end(&e);
}

// An op that waits for fewer dirty slices sees the sync's error, and leaves nothing behind.
static void a_sync_that_fails_is_told_to_who_waits_for_room(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_write(&e, 512, 512, 7), 0);
    engine_start(&e, &write, OP_WRITE, 0, TABLE + 512, 512);
    scripted_file_end(e.disk, engine_reach(&e, "l2"), -ENOSPC);
    engine_run(&e);
    assert_int_equal(write.done, 1);
    assert_int_equal(write.op.result, -ENOSPC);
    assert_int_equal(e.image->cache->dirty_count, 1);
    assert_int_equal(e.image->cache->writing_count, 0);
    engine_expect(&e, 512, 512, 7);
    engine_end(&e);
}

// Every slice is dirty or being written: a read requests the sync that makes room.
static void a_read_asks_for_the_sync_that_makes_room(void **state)
{
    struct request reads[2];
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_write(&e, 512, 512, 7), 0);
    engine_watch(&e);
    engine_start(&e, &reads[0], OP_READ, 0, TABLE, 512);
    engine_start(&e, &reads[1], OP_READ, 0, 2 * TABLE, 512);
    engine_hold(&e, "read-l2");
    assert_int_equal(engine_count(&e, "l2"), 1);
    engine_run(&e);
    assert_int_equal(reads[0].done + reads[1].done, 2);
    engine_end(&e);
}

// The hash of a large cache is bounded.
static void a_large_cache_has_a_bounded_hash(void **state)
{
    struct cache cache = {0};

    (void)state;
    cache_free(&cache); // that was never made
    assert_int_equal(cache_init(&cache, 1u << 30, 512), 0);
    assert_int_equal(cache.max, (1u << 30) / 512);
    assert_int_equal(cache.bucket_mask, 65535);
    assert_int_equal(cache.dirty_max, CACHE_DIRTY_MAX);
    cache_free(&cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_one_not_looked_at_leaves),
        cmocka_unit_test(equal_misses_join_the_first),
        cmocka_unit_test(a_failed_load_is_told_to_all),
        cmocka_unit_test(a_dirty_slice_stays),
        cmocka_unit_test(a_slice_that_is_being_written_stays),
        cmocka_unit_test(who_finds_no_room_waits),
        cmocka_unit_test(too_many_dirty_slices_start_a_sync),
        cmocka_unit_test(a_sync_that_fails_is_told_to_who_waits_for_room),
        cmocka_unit_test(a_read_asks_for_the_sync_that_makes_room),
        cmocka_unit_test(a_large_cache_has_a_bounded_hash),
    };

    return cmocka_run_group_tests_name("cache", tests, NULL, NULL);
}
