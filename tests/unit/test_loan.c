// SPDX-License-Identifier: Apache-2.0
// test_loan.c: bytes that a read has left in the file: the life of their cluster, and the end of
// the loan.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/file.h"
#include "qcow2/base/loan.h"

struct fixture {
    struct file file;
    struct epochs plans, holders;
    struct epoch_member plan;
    struct loan loan;
    struct extent extents[4];
    unsigned returned;
    bool gone; // the bytes cannot be had
};

static struct fixture f;

static void return_loan(struct file *file, const void *bytes, uint64_t length)
{
    (void)bytes;
    (void)length;
    assert_ptr_equal(file, &f.file);
    f.returned++;
}

static bool copy_loan(struct file *file, void *to, const void *bytes, size_t length)
{
    (void)file;
    if (!f.gone)
        memcpy(to, bytes, length);
    return !f.gone;
}

static const struct file_ops ops = {.loan_return = return_loan, .loan_copy = copy_loan};

// A plan that is inside its epoch.
static int set_up(void **state)
{
    (void)state;
    f = (struct fixture){.file = {.ops = &ops}};
    epochs_init(&f.plans, "plans");
    epochs_init(&f.holders, "holders");
    // Epochs of plans have other numbers than those that holders would get.
    struct epoch_member others[4] = {0};
    for (size_t i = 0; i < 4; i++)
        epoch_enter(&f.plans, &others[i]);
    epoch_enter(&f.plans, &f.plan);
    for (size_t i = 0; i < 4; i++)
        epoch_leave(&others[i]);
    return 0;
}

// The loan stands in the epoch of the plan, although the plan has left and the read goes on.
static void the_first_loan_keeps_all_clusters(void **state)
{
    (void)state;
    uint64_t before = epoch_now(&f.plans) - 1;
    loan_take(&f.loan, &f.file, &f.holders, f.plan.epoch);
    epoch_leave(&f.plan);
    uint64_t stamp = epoch_now(&f.plans);
    epoch_enter(&f.plans, &f.plan);
    loan_take(&f.loan, &f.file, &f.holders, f.plan.epoch);
    assert_int_equal(f.loan.holder.epoch, before);
    epoch_leave(&f.plan);
    assert_true(epoch_passed(&f.plans, stamp));
    assert_false(epoch_passed(&f.holders, stamp));
    loan_return(&f.loan, f.extents, 0);
    assert_true(epoch_passed(&f.holders, stamp));
}

static void settling_copies_and_returns(void **state)
{
    char buf[13] = "............";

    (void)state;
    loan_take(&f.loan, &f.file, &f.holders, f.plan.epoch);
    epoch_leave(&f.plan);
    f.extents[0] = (struct extent){.length = 4, .data = "abcd"};
    f.extents[1] = (struct extent){.length = 4};
    f.extents[2] = (struct extent){.length = 4, .data = "efgh"};
    // Bytes that cannot be read any more: the loan stands, and may be returned.
    f.gone = true;
    assert_false(loan_settle(&f.loan, f.extents, 3, buf));
    assert_ptr_equal(f.loan.file, &f.file);
    assert_int_equal(f.returned, 0);
    f.gone = false;
    assert_true(loan_settle(&f.loan, f.extents, 3, buf));
    assert_string_equal(buf, "abcd....efgh");
    assert_int_equal(f.returned, 2);
    assert_null(f.loan.file);
    assert_true(epoch_passed(&f.holders, UINT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_first_loan_keeps_all_clusters, set_up),
        cmocka_unit_test_setup(settling_copies_and_returns, set_up),
    };

    return cmocka_run_group_tests_name("loan", tests, NULL, NULL);
}
