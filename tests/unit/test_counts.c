// SPDX-License-Identifier: Apache-2.0
// test_counts.c: qcow2/base/counts against an array.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>

#include <cmocka.h>

#include "qcow2/base/counts.h"

#define CLUSTERS (2 * COUNTS_CHUNK_CLUSTERS + 1000)

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void assert_counts(const struct counts *c, const uint32_t *model)
{
    uint64_t next = CLUSTERS;

    for (uint64_t i = CLUSTERS; i-- > 0;) {
        assert_int_equal(counts_get(c, i), model[i]);
        if (model[i] != 0)
            next = i;
        assert_int_equal(counts_next(c, i), next);
    }
    for (uint64_t i = 0; i < CLUSTERS; i += 64) {
        uint64_t word;
        if (!counts_word(c, i, &word))
            continue;
        for (uint64_t k = 0; k < 64 && i + k < CLUSTERS; k++)
            assert_int_equal(word >> k & 1, model[i + k]);
    }
}

static void counts_are_those_of_an_array(void **state)
{
    static const uint32_t steps[] = {1, 1, 1, 2, 200, 70000};
    uint32_t *model = calloc(CLUSTERS, sizeof(*model));
    struct counts c;

    (void)state;
    assert_non_null(model);
    assert_int_equal(counts_init(&c, CLUSTERS), 0);
    uint64_t seed = 88172645463325252;
    for (unsigned round = 0; round < 600; round++) {
        uint64_t first = next_random(&seed) % CLUSTERS;
        uint64_t n = next_random(&seed) % 300;
        // Small numbers at first, so that every width and the way between widths are covered.
        uint32_t by = steps[next_random(&seed) % (1 + round / 100)];

        if (n > CLUSTERS - first)
            n = CLUSTERS - first;
        assert_int_equal(counts_add(&c, first, n, by), 0);
        for (uint64_t i = 0; i < n; i++)
            model[first + i] += by;
        if (round % 100 == 99)
            assert_counts(&c, model);
    }
    for (unsigned round = 0; round < 200; round++) {
        uint64_t at = next_random(&seed) % CLUSTERS;
        model[at] = steps[round % 6] - 1;
        assert_int_equal(counts_set(&c, at, model[at]), 0);
    }
    assert_counts(&c, model);
    counts_free(&c);
    free(model);
}

static void counts_stop_at_their_limit(void **state)
{
    struct counts c;

    (void)state;
    assert_int_equal(counts_init(&c, 10), 0);
    assert_int_equal(counts_add(&c, 3, 1, UINT32_MAX - 1), 0);
    assert_int_equal(counts_add(&c, 3, 1, 5), 0);
    assert_int_equal(counts_get(&c, 3), UINT32_MAX);
    assert_int_equal(counts_get(&c, 4), 0);
    counts_free(&c);
}

static void too_many_clusters_are_refused(void **state)
{
    struct counts c;

    (void)state;
    assert_int_equal(counts_init(&c, COUNTS_CLUSTERS_MAX + 1), -EFBIG);
    assert_int_equal(counts_init(&c, 0), 0);
    assert_int_equal(counts_next(&c, 0), 0);
    counts_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_are_those_of_an_array),
        cmocka_unit_test(counts_stop_at_their_limit),
        cmocka_unit_test(too_many_clusters_are_refused),
    };

    return cmocka_run_group_tests_name("counts", tests, NULL, NULL);
}
