// SPDX-License-Identifier: Apache-2.0
// Which writes and barriers the loop makes itself.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "server/file_pace.h"

#define QUICK_NS 100000u
#define SLOW_NS 50000000u

static void barriers_are_tried_where_they_were_quick(void **state)
{
    struct sync_pace pace = {0};

    (void)state;
    assert_false(sync_pace_allows(&pace)); // nothing is known
    sync_pace_note(&pace, QUICK_NS);
    assert_true(sync_pace_allows(&pace));
    sync_pace_note_change(&pace, 8192);
    assert_true(sync_pace_allows(&pace));
    sync_pace_note_change(&pace, UINT64_MAX);
    assert_false(sync_pace_allows(&pace));
}

// A quick one does not make up for the slow one before it, and the second slow one costs more.
static void a_slow_barrier_is_remembered(void **state)
{
    struct sync_pace pace = {0};
    uint64_t first;
    uint64_t begun = pace_now();

    (void)state;
    sync_pace_note(&pace, SLOW_NS);
    first = pace.retry_at;
    assert_true(first > begun);
    sync_pace_note(&pace, QUICK_NS);
    if (pace_now() < first) { // else this process was held up for long
        assert_false(sync_pace_allows(&pace));
    }
    sync_pace_note(&pace, SLOW_NS);
    assert_true(pace.penalty >= 2 * (first - begun) - (pace_now() - begun) * 2);
    for (int i = 0; i < 100; i++) {
        sync_pace_note(&pace, SLOW_NS);
    }
    assert_in_range(pace.retry_at, begun, pace_now() + 3000000000u);
}

static void slow_writes_leave_the_loop(void **state)
{
    struct write_pace pace = {0};

    (void)state;
    assert_true(write_pace_allows(&pace));
    write_pace_note(&pace, QUICK_NS, QUICK_NS);
    assert_true(write_pace_allows(&pace));
    write_pace_note(&pace, SLOW_NS, SLOW_NS);
    if (pace_now() < pace.retry_at) {
        assert_false(write_pace_allows(&pace));
    }
    pace.retry_at = 0;
    assert_true(write_pace_allows(&pace));
    pace.worker_latency = SLOW_NS; // workers are slow as well
    assert_false(write_pace_allows(&pace));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(barriers_are_tried_where_they_were_quick),
        cmocka_unit_test(a_slow_barrier_is_remembered),
        cmocka_unit_test(slow_writes_leave_the_loop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
