// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "qcow2/base/cluster_set.h"

static void empty_has_nothing(void **state)
{
    struct cluster_set set = {0};

    (void)state;
    assert_false(cluster_set_has(&set, 0));
    cluster_set_remove(&set, 7);
    assert_int_equal(set.count, 0);
    cluster_set_free(&set);
}

static void twice_is_once(void **state)
{
    struct cluster_set set = {0};

    (void)state;
    assert_int_equal(cluster_set_add(&set, UINT64_MAX - 1), 0);
    assert_int_equal(cluster_set_add(&set, UINT64_MAX - 1), 0);
    assert_int_equal(set.count, 1);
    cluster_set_remove(&set, UINT64_MAX - 1);
    assert_false(cluster_set_has(&set, UINT64_MAX - 1));
    cluster_set_free(&set);
}

// Adds and removes at random against a plain array; numbers far apart and close together, so that
// probing meets and crosses the end of the table.
static void random_against_array(void **state)
{
    enum { NUMBERS = 2000, STEPS = 200000 };
    static bool expected[NUMBERS];
    struct cluster_set set = {0};
    unsigned seed = 1;

    (void)state;
    for (int step = 0; step < STEPS; step++) {
        unsigned i = (unsigned)rand_r(&seed) % NUMBERS;
        uint64_t cluster = i % 2 ? i : (uint64_t)i << 33;

        if (rand_r(&seed) % 2) {
            assert_int_equal(cluster_set_add(&set, cluster), 0);
            expected[i] = true;
        } else {
            cluster_set_remove(&set, cluster);
            expected[i] = false;
        }
        i = (unsigned)rand_r(&seed) % NUMBERS;
        assert_int_equal(cluster_set_has(&set, i % 2 ? i : (uint64_t)i << 33), expected[i]);
    }
    size_t count = 0;
    for (unsigned i = 0; i < NUMBERS; i++) {
        count += expected[i];
        assert_int_equal(cluster_set_has(&set, i % 2 ? i : (uint64_t)i << 33), expected[i]);
    }
    assert_int_equal(set.count, count);
    cluster_set_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_has_nothing),
        cmocka_unit_test(twice_is_once),
        cmocka_unit_test(random_against_array),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
