// SPDX-License-Identifier: Apache-2.0
// test_file_pace.c: the choice of writes and barriers that the loop makes itself.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "server/file_pace.h"

#define QUICK_NS 100000u
#define SLOW_NS 50000000u
#define FIRST_NS 20000000u // what the first slow one costs
#define MOST_NS 2000000000u
#define FORGOTTEN_NS 1000000000u
// Arbitrary times; one at which the clock has not run for long.
static const uint64_t starts[] = {1, 7777777777777u};

static void barriers_are_tried_where_they_were_quick(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        uint64_t now = starts[i];
        struct sync_pace pace = {0};

        assert_false(sync_pace_allows(&pace, now)); // nothing is known
        sync_pace_note(&pace, now, QUICK_NS);
        assert_true(sync_pace_allows(&pace, now));
        sync_pace_note_change(&pace, 8192);
        assert_true(sync_pace_allows(&pace, now));
        sync_pace_note_change(&pace, UINT64_MAX);
        assert_false(sync_pace_allows(&pace, now));
    }
}

// A quick one does not outweigh the slow one before it, and the second slow one costs more.
static void a_slow_barrier_is_remembered(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        uint64_t now = starts[i] + FORGOTTEN_NS;
        struct sync_pace pace = {0};

        sync_pace_note(&pace, now, SLOW_NS);
        assert_false(sync_pace_allows(&pace, now + FIRST_NS)); // the last one was slow
        sync_pace_note(&pace, now, QUICK_NS);
        assert_false(sync_pace_allows(&pace, now + FIRST_NS - 1));
        assert_true(sync_pace_allows(&pace, now + FIRST_NS));
        now += FIRST_NS;
        sync_pace_note(&pace, now, SLOW_NS);
        sync_pace_note(&pace, now, QUICK_NS);
        assert_false(sync_pace_allows(&pace, now + 2 * FIRST_NS - 1));
        assert_true(sync_pace_allows(&pace, now + 2 * FIRST_NS));
        for (int k = 0; k < 100; k++) {
            sync_pace_note(&pace, now, SLOW_NS);
        }
        assert_int_equal(pace.retry_at, now + MOST_NS);
        // Slowness is forgotten after a while.
        now = pace.retry_at + FORGOTTEN_NS;
        sync_pace_note(&pace, now, SLOW_NS);
        assert_int_equal(pace.retry_at, now + FIRST_NS);
    }
}

static void slow_writes_leave_the_loop(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        uint64_t now = starts[i] + FORGOTTEN_NS;
        struct write_pace pace = {0};

        assert_true(write_pace_allows(&pace, now));
        write_pace_note(&pace, now, QUICK_NS, QUICK_NS);
        assert_true(write_pace_allows(&pace, now));
        write_pace_note(&pace, now, SLOW_NS, SLOW_NS);
        assert_false(write_pace_allows(&pace, now + FIRST_NS - 1));
        assert_true(write_pace_allows(&pace, now + FIRST_NS));
        pace.worker_latency = SLOW_NS; // workers are slow as well
        assert_false(write_pace_allows(&pace, now + FIRST_NS));
        pace.worker_latency = QUICK_NS;
        now += FIRST_NS;
        write_pace_note(&pace, now, SLOW_NS, SLOW_NS); // the try fails
        assert_false(write_pace_allows(&pace, now + 2 * FIRST_NS - 1));
        now += 2 * FIRST_NS;
        assert_true(write_pace_allows(&pace, now));
        write_pace_note(&pace, now, QUICK_NS, QUICK_NS);
        assert_true(write_pace_allows(&pace, now));
        // Slow again: soon after, twice as long; after a long time, as at first.
        write_pace_note(&pace, now + FORGOTTEN_NS - 1, SLOW_NS, SLOW_NS);
        assert_int_equal(pace.penalty, 4 * FIRST_NS);
        now = pace.retry_at;
        write_pace_note(&pace, now, QUICK_NS, QUICK_NS);
        write_pace_note(&pace, now + FORGOTTEN_NS, SLOW_NS, SLOW_NS);
        assert_int_equal(pace.penalty, FIRST_NS);
    }
}

// A quick write does not end it, whatever the number of other writes in its turn.
static void many_quick_writes_stay_on_the_loop(void **state)
{
    struct write_pace pace = {0};

    (void)state;
    write_pace_note(&pace, starts[1], QUICK_NS, SLOW_NS);
    assert_true(write_pace_allows(&pace, starts[1]));
    write_pace_note(&pace, starts[1], 3 * QUICK_NS, SLOW_NS);
    assert_false(write_pace_allows(&pace, starts[1]));
}

// Page faults are counted now and then; one stops the copies for a while, which grows.
static void disks_are_not_waited_for(void **state)
{
    const uint64_t asked = 100000;
    uint64_t now = starts[1];
    struct disk_pace pace = {.faults = 3};

    (void)state;
    assert_true(disk_pace_allows(&pace, now));
    assert_true(disk_pace_asks(&pace, now));
    assert_true(disk_pace_note(&pace, now, 3));
    assert_false(disk_pace_asks(&pace, now + asked - 1));
    now += asked;
    assert_true(disk_pace_asks(&pace, now));
    assert_false(disk_pace_note(&pace, now, 4));
    assert_false(disk_pace_allows(&pace, now + FIRST_NS - 1));
    now += FIRST_NS;
    assert_true(disk_pace_allows(&pace, now));
    assert_true(disk_pace_note(&pace, now, 4));
    assert_false(disk_pace_note(&pace, now + asked, 6)); // soon again
    assert_false(disk_pace_allows(&pace, now + asked + 2 * FIRST_NS - 1));
    assert_true(disk_pace_allows(&pace, now + asked + 2 * FIRST_NS));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(barriers_are_tried_where_they_were_quick),
        cmocka_unit_test(a_slow_barrier_is_remembered),
        cmocka_unit_test(slow_writes_leave_the_loop),
        cmocka_unit_test(many_quick_writes_stay_on_the_loop),
        cmocka_unit_test(disks_are_not_waited_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
