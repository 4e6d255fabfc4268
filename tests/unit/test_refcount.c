// SPDX-License-Identifier: Apache-2.0
// test_refcount.c: the refcounts in memory against a plain array, for each width.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/space/refcount.h"
#include "qcow2/format/refcount_array.h"
#include "tests/unit/scripted_file.h"

#define CLUSTER_BITS 9
#define TABLE_SIZE 64 // entries: one cluster of table

struct fixture {
    struct refcounts rc;
    uint64_t clusters;
    uint64_t max;
    uint64_t *expected;
    unsigned seed;
};

static struct fixture make(unsigned order)
{
    const struct header header = {.cluster_bits = CLUSTER_BITS, .refcount_order = order};
    const struct geometry g = geometry_from_header(&header);
    struct fixture f = {.seed = order + 1, .max = refcount_array_max(order)};
    uint64_t *table = calloc(TABLE_SIZE, sizeof(*table));

    assert_non_null(table);
    assert_int_equal(refcounts_init(&f.rc, &g, table, TABLE_SIZE), 0);
    f.clusters = (uint64_t)TABLE_SIZE << g.block_bits;
    f.expected = calloc(f.clusters, sizeof(*f.expected));
    assert_non_null(f.expected);
    return f;
}

static void done(struct fixture *f)
{
    refcounts_free(&f->rc);
    free(f->expected);
}

static uint64_t below(struct fixture *f, uint64_t n)
{
    return ((uint64_t)rand_r(&f->seed) << 20 ^ (uint64_t)rand_r(&f->seed)) % n;
}

static void set_at_random(struct fixture *f)
{
    uint64_t page = 1ull << f->rc.geometry.block_bits;
    uint64_t first = below(f, f->clusters);
    uint64_t count = 1 + below(f, page - first % page);

    if (below(f, 3) == 0) {
        for (uint64_t i = 0; i < count; i++)
            assert_int_equal(refcounts_set(&f->rc, first + i, f->expected[first + i] = 0), 0);
    } else if (refcounts_all_free(&f->rc, first, count)) {
        assert_int_equal(refcounts_add(&f->rc, first, count, 1), 0);
        for (uint64_t i = 0; i < count; i++)
            assert_int_equal(f->expected[first + i]++, 0);
    } else {
        uint64_t value = below(f, 4) == 0 ? f->max : 1;

        assert_int_equal(refcounts_set(&f->rc, first, f->expected[first] = value), 0);
    }
}

static void check_free_run(struct fixture *f)
{
    uint64_t from = below(f, f->clusters), want = 1 + below(f, 50);
    uint64_t first = 0, next = 0, longest = 0, run = 0;
    uint64_t found = refcounts_find_free(&f->rc, from, f->clusters, want, &first, &next);

    for (uint64_t i = 0; i < found; i++)
        assert_int_equal(f->expected[first + i], 0);
    for (uint64_t i = from; i < f->clusters; i++) {
        run = f->expected[i] == 0 ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    // A run does not cross pages, so it may be half of the longest; but if there is one, one is
    // found.
    assert_true(found <= want);
    assert_int_equal(found == 0, longest == 0);
}

static void check_all(struct fixture *f)
{
    uint64_t page = 1ull << f->rc.geometry.block_bits;
    uint64_t end = 0;
    uint8_t block[1 << CLUSTER_BITS];

    for (uint64_t i = 0; i < f->clusters; i++) {
        assert_int_equal(refcounts_get(&f->rc, i), f->expected[i]);
        assert_int_equal(refcounts_may_be_one(&f->rc, i), f->expected[i] == 1);
        if (f->expected[i] != 0)
            end = i + 1;
    }
    assert_int_equal(refcounts_end(&f->rc, f->clusters), end);
    for (uint64_t p = 0; p < TABLE_SIZE; p++) {
        uint64_t used = 0;

        refcounts_encode_piece(&f->rc, p, 0, block);
        for (uint64_t i = 0; i < page; i++) {
            assert_int_equal(refcount_array_get(block, f->rc.geometry.refcount_order, i),
                             f->expected[p * page + i]);
            used += f->expected[p * page + i] != 0;
        }
        assert_int_equal(refcounts_page_empty(&f->rc, p), used == 0);
    }
}

static void random_against_array(void **state)
{
    (void)state;
    for (unsigned order = 0; order <= 6; order++) {
        struct fixture f = make(order);

        for (int step = 0; step < 400; step++) {
            set_at_random(&f);
            check_free_run(&f);
            if (step % 50 == 0)
                check_all(&f);
        }
        check_all(&f);
        done(&f);
    }
}

static void width_is_a_limit(void **state)
{
    (void)state;
    struct fixture f = make(1);

    assert_int_equal(refcounts_set(&f.rc, 5, 3), 0);
    assert_true(refcounts_set(&f.rc, 5, 4) < 0);
    assert_true(refcounts_add(&f.rc, 5, 1, 1) < 0);
    assert_int_equal(refcounts_get(&f.rc, 5), 3);
    done(&f);
}

static void dirty_until_written(void **state)
{
    (void)state;
    struct fixture f = make(4);

    assert_int_equal(refcounts_next_dirty(&f.rc, 0), TABLE_SIZE);
    assert_int_equal(refcounts_set(&f.rc, 256 + 3, 1), 0);
    assert_int_equal(refcounts_next_dirty(&f.rc, 0), 1);
    assert_true(refcounts_piece_dirty(&f.rc, 1, 0));
    assert_int_equal(f.rc.dirty_pages, 1);
    refcounts_piece_written(&f.rc, 1, 0);
    assert_int_equal(refcounts_next_dirty(&f.rc, 0), TABLE_SIZE);
    refcounts_piece_again(&f.rc, 1, 0);
    assert_int_equal(f.rc.dirty_pages, 1);
    done(&f);
}

// Growing keeps the entries, and ends at the format's limit.
static void table_grows(void **state)
{
    (void)state;
    struct fixture f = make(4);
    uint64_t far = (uint64_t)TABLE_SIZE * 256 * 3;

    assert_int_equal(refcounts_set(&f.rc, 77, 2), 0);
    refcounts_set_block(&f.rc, 0, 1 << 20);
    assert_int_equal(refcounts_reach(&f.rc, far), 0);
    // Dirty marks are kept, too.
    assert_true(refcounts_table_piece_dirty(&f.rc, 0));
    assert_int_equal(refcounts_next_dirty(&f.rc, 0), 0);
    assert_true(refcounts_piece_dirty(&f.rc, 0, 0));
    assert_int_equal(refcounts_next_dirty(&f.rc, 1), f.rc.table_size);
    assert_true(f.rc.table_moved);
    assert_true(f.rc.table_size > far / 256);
    assert_int_equal(f.rc.table_size % 64, 0);
    assert_int_equal(refcounts_get(&f.rc, 77), 2);
    assert_int_equal(refcounts_set(&f.rc, far, 1), 0);
    assert_true(refcounts_reach(&f.rc, HEADER_REFCOUNT_TABLE_BYTES_MAX / 8 * 256ull) < 0);
    done(&f);
}

// The largest table has 1 Mi entries; what is behind it is out of reach.
static void table_ends_at_its_limit(void **state)
{
    (void)state;
    struct fixture f = make(4);
    const uint64_t limit = HEADER_REFCOUNT_TABLE_BYTES_MAX / 8;

    assert_true(refcounts_may_be_one(&f.rc, limit * 256 + 1));
    assert_int_equal(refcounts_reach(&f.rc, limit * 256 - 1), 0);
    assert_int_equal(f.rc.table_size, limit);
    assert_int_equal(refcounts_reach(&f.rc, limit * 256), -EFBIG);
    done(&f);
}

// So many references at once are more than the width can count.
static void too_much_at_once(void **state)
{
    (void)state;
    struct fixture f = make(1);

    assert_int_equal(refcounts_add(&f.rc, 5, 1, 4), -ERANGE);
    assert_int_equal(refcounts_add(&f.rc, 5, 1, 3), 0);
    assert_int_equal(refcounts_get(&f.rc, 5), 3);
    done(&f);
}

// A search looks at so much at most, and says where to go on.
static void a_search_is_bounded(void **state)
{
    (void)state;
    struct fixture f = make(4);
    const uint64_t pages = REFCOUNT_SEARCH_WORDS + 100;
    uint64_t first = 0, next = 0;

    assert_int_equal(refcounts_reach(&f.rc, pages * 256), 0);
    for (uint64_t page = 0; page < pages; page++)
        assert_int_equal(refcounts_add(&f.rc, page * 256, 256, 1), 0);
    assert_int_equal(refcounts_find_free(&f.rc, 0, (pages + 1) * 256, 1, &first, &next), 0);
    assert_int_equal(next, REFCOUNT_SEARCH_WORDS * 256);
    assert_int_equal(refcounts_find_free(&f.rc, next, (pages + 1) * 256, 1, &first, &next), 1);
    assert_int_equal(first, pages * 256);
    // Free clusters that do not make a long run cost as well.
    for (uint64_t page = 0; page < pages; page++) {
        for (uint64_t i = 1; i < 256; i += 2)
            assert_int_equal(refcounts_set(&f.rc, page * 256 + i, 0), 0);
    }
    assert_int_equal(refcounts_find_free(&f.rc, 0, pages * 256, 2, &first, &next), 1);
    assert_true(next < pages * 256);
    done(&f);
}

// ---- The end of an image on a device ------------------------------------------------------------

static void the_last_block_that_counts_is_read(void **state)
{
    static const struct {
        uint64_t block; // offset of the last one, of zeros
        unsigned empty; // blocks of zeros in all
        bool fails;
        int result;
    } rows[] = {
        {20 * 512, 1, false, 0},
        {20 * 512 + 8, 1, false, -EFBIG},
        {HEADER_OFFSET_LIMIT, 1, false, -EFBIG},
        {20 * 512, 1, true, -EIO},
        {20 * 512, REFCOUNT_EMPTY_BLOCKS_MAX, false, -EFBIG},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct scripted_file *disk = scripted_file_new();
        const struct header header = {.cluster_bits = 9, .refcount_order = 4};
        const struct geometry g = geometry_from_header(&header);
        uint64_t *table = calloc(128, sizeof(*table));
        struct refcounts rc;

        disk->size = 1 << 20;
        table[0] = 10 * 512;
        for (unsigned n = 1; n <= rows[i].empty; n++)
            table[n] = rows[i].block;
        format_put16(disk->bytes + 10 * 512 + 2 * 7, 1);
        disk->fail_kind = FILE_READ;
        disk->fail_length = rows[i].fails ? 1 << 20 : 0;
        disk->fail_error = -EIO;
        assert_int_equal(refcounts_init(&rc, &g, table, 128), 0);
        assert_int_equal(refcounts_load_last(&rc, &disk->file), rows[i].result);
        if (rows[i].result == 0)
            assert_int_equal(refcounts_end(&rc, 128 * 256), 8);
        // Without any refcount above 0 nothing is in use.
        memset(rc.table, 0, 128 * sizeof(*table));
        assert_int_equal(refcounts_load_last(&rc, &disk->file), 0);
        refcounts_free(&rc);
        scripted_file_free(disk);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_against_array),
        cmocka_unit_test(width_is_a_limit),
        cmocka_unit_test(dirty_until_written),
        cmocka_unit_test(table_grows),
        cmocka_unit_test(table_ends_at_its_limit),
        cmocka_unit_test(too_much_at_once),
        cmocka_unit_test(a_search_is_bounded),
        cmocka_unit_test(the_last_block_that_counts_is_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
