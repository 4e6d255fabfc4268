// SPDX-License-Identifier: Apache-2.0
// test_loop_spin.c: the loop looks for requests instead of sleeping, as long as it finds them, and
// not longer.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdint.h>

#include "server/loop_spin.h"

#define MAX_NS 50000u
// More sleeps or requests than any rule counts.
#define MANY 5000

static uint64_t now;

// Sends replies; the next request comes gap nanoseconds later. Returns true when the loop was
// awake.
static bool exchange(struct loop_spin *spin, uint64_t gap)
{
    uint64_t begin = now;
    bool awake = true;

    loop_spin_replied(spin, now);
    while (awake && now < begin + gap) {
        awake = loop_spin_look(spin, now);
        now += 1000;
    }
    now = begin + gap;
    loop_spin_received(spin, now);
    now += 5000;
    return awake;
}

static unsigned awake_of(struct loop_spin *spin, unsigned count, uint64_t gap)
{
    unsigned awake = 0;

    for (unsigned i = 0; i < count; i++) {
        awake += exchange(spin, gap);
    }
    return awake;
}

static void quick_requests_keep_it_awake(void **state)
{
    struct loop_spin spin;

    (void)state;
    loop_spin_init(&spin, MAX_NS);
    assert_false(exchange(&spin, 10000)); // nothing is known of this client yet
    assert_in_range(awake_of(&spin, 100, 10000), 90, 99);
    assert_int_equal(awake_of(&spin, MANY, 10000), MANY);
}

// The sleep that tells the client's speed contains the time to wake up.
static void being_woken_is_not_the_clients_slowness(void **state)
{
    struct loop_spin spin;

    (void)state;
    loop_spin_init(&spin, MAX_NS);
    for (unsigned i = 0; i < 10 && !spin.on; i++) {
        // 20 us of the client, 50 us until it is awake, and as much until this is
        assert_false(exchange(&spin, 120000));
    }
    assert_int_equal(awake_of(&spin, 100, 20000), 100);
}

static void slow_requests_let_it_sleep(void **state)
{
    struct loop_spin spin;

    (void)state;
    loop_spin_init(&spin, MAX_NS);
    assert_int_equal(awake_of(&spin, MANY, 4 * MAX_NS), 0);
    assert_false(spin.on);
}

static void it_stops_when_the_client_becomes_slow(void **state)
{
    struct loop_spin spin;
    unsigned looked = 0;

    (void)state;
    loop_spin_init(&spin, MAX_NS);
    awake_of(&spin, MANY, 10000);
    for (unsigned i = 0; i < MANY; i++) {
        loop_spin_replied(&spin, now);
        looked += loop_spin_look(&spin, now);
        exchange(&spin, 1000000);
    }
    assert_in_range(looked, 1, 20);
}

// Requests that come just too late would cost the whole time each: looking becomes rare.
static void failures_make_it_patient(void **state)
{
    struct loop_spin spin;
    unsigned looked = 0;

    (void)state;
    loop_spin_init(&spin, MAX_NS);
    for (unsigned i = 0; i < 20 * MANY; i++) {
        uint64_t begin = now;

        loop_spin_replied(&spin, now);
        looked += loop_spin_look(&spin, now);
        now += MAX_NS + MAX_NS / 2;
        loop_spin_look(&spin, now);
        loop_spin_received(&spin, now);
        assert_true(now > begin);
    }
    assert_in_range(looked, 2, 20 * MANY / 100);
}

static void a_crowded_processor_is_left(void **state)
{
    struct loop_spin spin;
    unsigned looked = 0;

    (void)state;
    loop_spin_init(&spin, MAX_NS);
    for (unsigned i = 0; i < MANY; i++) {
        loop_spin_replied(&spin, now);
        if (loop_spin_look(&spin, now)) {
            looked++;
            loop_spin_crowded(&spin);
            assert_false(loop_spin_look(&spin, now));
            now += 3000000; // somebody else's turn
        }
        now += 10000;
        loop_spin_received(&spin, now);
    }
    assert_in_range(looked, 2, MANY / 50);
}

// Perhaps only the client wanted the processor, and no longer needs it.
static void a_client_on_the_same_processor_is_looked_for(void **state)
{
    struct loop_spin spin;
    unsigned looked = 0;

    (void)state;
    loop_spin_init(&spin, MAX_NS);
    awake_of(&spin, 100, 10000);
    for (unsigned i = 0; i < MANY; i++) {
        loop_spin_replied(&spin, now);
        if (loop_spin_look(&spin, now)) {
            looked++;
            loop_spin_crowded(&spin);
        }
        now += 10000;
        loop_spin_received(&spin, now);
    }
    assert_int_equal(looked, MANY);
}

// One of ten requests comes late, with the loop awake or asleep.
static void now_and_then_a_late_request_is_no_reason(void **state)
{
    struct loop_spin spin;
    unsigned awake = 0;

    (void)state;
    loop_spin_init(&spin, MAX_NS);
    spin.short_sleeps_needed = 1024;
    for (unsigned i = 0; i < 3 * MANY; i++) {
        bool found = exchange(&spin, i % 10 == 0 ? 1000000 : 10000);

        awake += i >= 2 * MANY && found;
    }
    assert_in_range(awake, MANY / 2, MANY);
}

// The loop does not look while the server itself is slow (a barrier, a disk).
static void it_does_not_look_while_a_request_runs(void **state)
{
    struct loop_spin spin;

    (void)state;
    loop_spin_init(&spin, MAX_NS);
    awake_of(&spin, 100, 10000);
    assert_true(spin.on);
    assert_false(loop_spin_look(&spin, now));
}

static void it_can_be_turned_off(void **state)
{
    struct loop_spin spin;

    (void)state;
    loop_spin_init(&spin, 0);
    assert_int_equal(awake_of(&spin, MANY, 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quick_requests_keep_it_awake),
        cmocka_unit_test(being_woken_is_not_the_clients_slowness),
        cmocka_unit_test(slow_requests_let_it_sleep),
        cmocka_unit_test(it_stops_when_the_client_becomes_slow),
        cmocka_unit_test(failures_make_it_patient),
        cmocka_unit_test(a_crowded_processor_is_left),
        cmocka_unit_test(a_client_on_the_same_processor_is_looked_for),
        cmocka_unit_test(now_and_then_a_late_request_is_no_reason),
        cmocka_unit_test(it_does_not_look_while_a_request_runs),
        cmocka_unit_test(it_can_be_turned_off),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
