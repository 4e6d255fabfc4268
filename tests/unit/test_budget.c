// SPDX-License-Identifier: Apache-2.0
// test_budget.c: sharing scarce memory, and buffers that the pool keeps.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdint.h>
#include <string.h>

#include "server/budget.h"
#include "server/buffer_pool.h"

static void a_share_has_its_limit(void **state)
{
    struct budget budget = {.limit = 1000};
    struct share share = {.budget = &budget, .limit = 100};

    (void)state;
    assert_true(share_take(&share, 60));
    assert_false(share_take(&share, 41));
    assert_true(share_take(&share, 40));
    assert_int_equal(budget.used, 100);
    share_give(&share, 60);
    assert_int_equal(budget.returned, 1);
    assert_true(share_take(&share, 60));
    share_give(&share, 100);
    assert_int_equal(share.used, 0);
    assert_int_equal(budget.used, 0);
}

// A connection that takes all it can get leaves room for as much as each of them has.
static void hogs_leave_room(void **state)
{
    struct budget budget = {.limit = 10000};
    struct share hogs[3];
    struct share late = {.budget = &budget, .limit = 10000};
    size_t got = 0;

    (void)state;
    for (int i = 0; i < 3; i++) {
        hogs[i] = (struct share){.budget = &budget, .limit = 10000};
    }
    for (int round = 0; round < 10000; round++) {
        share_take(&hogs[round % 3], 10);
    }
    assert_true(budget.used <= 7500);
    assert_true(budget.used >= 7400);
    while (share_take(&late, 10)) {
        got += 10;
    }
    assert_true(got >= 1200);
    for (int i = 0; i < 3; i++) {
        share_give(&hogs[i], hogs[i].used);
    }
    share_give(&late, got);
    assert_int_equal(budget.used, 0);
}

static void who_has_nothing_may_use_the_reserve(void **state)
{
    struct budget budget = {.limit = 1000, .reserve = 200};
    struct share hog = {.budget = &budget, .limit = 1000};
    struct share poor = {.budget = &budget, .limit = 1000};

    (void)state;
    assert_true(share_take(&hog, 1000));
    assert_false(share_take(&hog, 1));
    assert_false(share_take(&poor, 201));
    assert_true(share_take(&poor, 150));
    assert_false(share_take(&poor, 10)); // has something now
    share_give(&poor, 150);
    share_give(&hog, 1000);
}

static void huge_sizes_do_not_overflow(void **state)
{
    struct budget budget = {.limit = 1000, .reserve = 200};
    struct share share = {.budget = &budget, .limit = 1000};

    (void)state;
    assert_false(share_take(&share, SIZE_MAX));
    assert_true(share_take(&share, 1));
    assert_false(share_take(&share, SIZE_MAX));
    share_give(&share, 1);
}

static void buffers_are_aligned_and_reused(void **state)
{
    struct buffer_pool pool;
    static const size_t sizes[] = {1, 4096, 4097, 100000, 1 << 20, BUFFER_BYTES_MAX};

    (void)state;
    buffer_pool_init(&pool);
    assert_int_equal(buffer_pool_size(1), 4096);
    assert_int_equal(buffer_pool_size(4097), 8192);
    assert_int_equal(buffer_pool_size(BUFFER_BYTES_MAX), BUFFER_BYTES_MAX);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        void *first = buffer_pool_get(&pool, sizes[i]);
        void *second;

        assert_non_null(first);
        assert_int_equal((uintptr_t)first % BUFFER_ALIGN, 0);
        memset(first, 0xff, buffer_pool_size(sizes[i]));
        buffer_pool_put(&pool, first, sizes[i]);
        second = buffer_pool_get(&pool, sizes[i]);
        assert_ptr_equal(first, second);
        buffer_pool_put(&pool, second, sizes[i]);
    }
    assert_true(pool.unused <= BUFFER_POOL_KEEP);
    buffer_pool_destroy(&pool);
    assert_int_equal(pool.unused, 0);
}

// Buffers that were in use between two ticks stay; others are freed.
static void idle_buffers_are_freed(void **state)
{
    struct buffer_pool pool;
    void *buffers[8];

    (void)state;
    buffer_pool_init(&pool);
    for (int i = 0; i < 8; i++) {
        buffers[i] = buffer_pool_get(&pool, 4096);
    }
    for (int i = 0; i < 8; i++) {
        buffer_pool_put(&pool, buffers[i], 4096);
    }
    assert_true(buffer_pool_tick(&pool)); // all were in use since the last tick
    assert_int_equal(pool.unused, 8 * 4096);
    for (int i = 0; i < 3; i++) {
        buffers[i] = buffer_pool_get(&pool, 4096);
    }
    for (int i = 0; i < 3; i++) {
        buffer_pool_put(&pool, buffers[i], 4096);
    }
    assert_true(buffer_pool_tick(&pool));
    assert_int_equal(pool.unused, 3 * 4096);
    assert_false(buffer_pool_tick(&pool));
    assert_int_equal(pool.unused, 0);
    buffer_pool_destroy(&pool);
}

static void the_pool_is_bounded(void **state)
{
    struct buffer_pool pool;
    void *buffers[4];

    (void)state;
    buffer_pool_init(&pool);
    for (int i = 0; i < 4; i++) {
        buffers[i] = buffer_pool_get(&pool, BUFFER_BYTES_MAX);
        assert_non_null(buffers[i]);
    }
    for (int i = 0; i < 4; i++) {
        buffer_pool_put(&pool, buffers[i], BUFFER_BYTES_MAX);
    }
    assert_int_equal(pool.unused, BUFFER_POOL_KEEP);
    buffer_pool_destroy(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_share_has_its_limit),
        cmocka_unit_test(hogs_leave_room),
        cmocka_unit_test(who_has_nothing_may_use_the_reserve),
        cmocka_unit_test(huge_sizes_do_not_overflow),
        cmocka_unit_test(buffers_are_aligned_and_reused),
        cmocka_unit_test(idle_buffers_are_freed),
        cmocka_unit_test(the_pool_is_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
