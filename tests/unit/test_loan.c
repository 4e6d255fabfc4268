// SPDX-License-Identifier: Apache-2.0
// Bytes that a read has left in the file: how long its cluster is kept, and who ends the loan.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/loan.h"

struct fixture {
    struct file file;
    struct epochs plans, loans;
    struct extent extents[4];
    struct op op;
    unsigned given_back;
    bool gone; // the bytes cannot be had
};

static struct fixture f;

static void give_back(struct file *file, const void *lent, uint64_t length)
{
    (void)lent;
    (void)length;
    assert_ptr_equal(file, &f.file);
    f.given_back++;
}

static bool copy_lent(struct file *file, void *to, const void *lent, size_t length)
{
    (void)file;
    if (!f.gone)
        memcpy(to, lent, length);
    return !f.gone;
}

static const struct file_ops ops = {.give_back = give_back, .copy_lent = copy_lent};

// An op that is inside its plan's epoch and has read "lent" from the file.
static int set_up(void **state)
{
    (void)state;
    f = (struct fixture){.file = {.ops = &ops}};
    epochs_init(&f.plans, "plans");
    epochs_init(&f.loans, "loans");
    f.op = (struct op){.flags = OP_LEND, .extents = f.extents, .max_extents = 4};
    f.op.io.file = &f.file;
    f.op.io.lent = "lent";
    epoch_enter(&f.plans, &f.op.plan);
    return 0;
}

static void there_must_be_room_to_note_it(void **state)
{
    struct file other = {.ops = &ops};

    (void)state;
    assert_true(loan_possible(&f.op, &f.file));
    f.op.extent_count = 3; // the last place is for what is not lent
    assert_false(loan_possible(&f.op, &f.file));
    f.op.extent_count = 2;
    assert_true(loan_possible(&f.op, &f.file));
    f.op.lender = &f.file;
    assert_false(loan_possible(&f.op, &other));
    f.op.lender = NULL;
    f.op.flags = 0;
    assert_false(loan_possible(&f.op, &f.file));
}

// The loan stands in the epoch of the plan, although the plan has left and the read goes on.
static void the_first_loan_keeps_all_clusters(void **state)
{
    (void)state;
    uint64_t before = epoch_now(&f.plans) - 1;
    loan_take(&f.op, &f.loans);
    epoch_leave(&f.op.plan);
    uint64_t stamp = epoch_now(&f.plans);
    epoch_enter(&f.plans, &f.op.plan);
    loan_take(&f.op, &f.loans);
    assert_int_equal(f.op.loan.epoch, before);
    epoch_leave(&f.op.plan);
    assert_true(epoch_passed(&f.plans, stamp));
    assert_false(epoch_passed(&f.loans, stamp));
    loan_return(&f.op);
    assert_true(epoch_passed(&f.loans, stamp));
}

static void settling_copies_and_returns(void **state)
{
    char buf[13] = "............";

    (void)state;
    loan_take(&f.op, &f.loans);
    epoch_leave(&f.op.plan);
    f.extents[0] = (struct extent){.length = 4, .lent = "abcd"};
    f.extents[1] = (struct extent){.length = 4};
    f.extents[2] = (struct extent){.length = 4, .lent = "efgh"};
    f.op.extent_count = 3;
    f.op.buf = buf;
    // Bytes that cannot be had any more: the loan stands, and may be returned.
    f.gone = true;
    assert_false(loan_settle(&f.op));
    assert_ptr_equal(f.op.lender, &f.file);
    assert_int_equal(f.given_back, 0);
    f.gone = false;
    assert_true(loan_settle(&f.op));
    assert_string_equal(buf, "abcd....efgh");
    assert_int_equal(f.given_back, 2);
    assert_null(f.op.lender);
    assert_true(epoch_passed(&f.loans, UINT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(there_must_be_room_to_note_it, set_up),
        cmocka_unit_test_setup(the_first_loan_keeps_all_clusters, set_up),
        cmocka_unit_test_setup(settling_copies_and_returns, set_up),
    };

    return cmocka_run_group_tests_name("loan", tests, NULL, NULL);
}
