// SPDX-License-Identifier: Apache-2.0
// test_waitq.c: waiting: wait queues, epochs, locked guest clusters, and the turns of an op. Each
// waiter is woken once, in order, with the result of the event that it waited for, and none is
// woken early.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/epoch.h"
#include "qcow2/base/inflight.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "tests/unit/scripted_file.h"

// ---- Ops that note their turns ------------------------------------------------------------------

#define TURNS_MAX 16

static struct op *turns[TURNS_MAX];
static size_t turn_count;

static void note_turn(struct op *op)
{
    assert_true(turn_count < TURNS_MAX);
    turns[turn_count++] = op;
}

static const char *const state_names[] = {"first", NULL, "third"};
static const struct op_machine machine = OP_MACHINE("test", note_turn, state_names);

struct fixture {
    struct runq runq;
    struct op ops[4];
};

static int set_up(void **state)
{
    static struct fixture f;

    turn_count = 0;
    runq_init(&f.runq);
    for (size_t i = 0; i < 4; i++)
        op_init(&f.ops[i], NULL, &f.runq, &machine);
    *state = &f;
    return 0;
}

static void run(struct fixture *f)
{
    while (runq_run(&f->runq))
        ;
}

// ---- Wait queues --------------------------------------------------------------------------------

static void all_are_woken_once_in_order(void **state)
{
    struct fixture *f = *state;
    struct waitq q;

    waitq_init(&q, "a test");
    assert_true(waitq_empty(&q));
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(op_park(&f->ops[i], &q), OP_PARKED);
    assert_false(waitq_empty(&q));
    assert_string_equal(f->ops[1].wait.event, "a test");
    run(f);
    assert_int_equal(turn_count, 0);

    waitq_wake(&q, -ENOSPC);
    // Waking runs no task.
    assert_int_equal(turn_count, 0);
    assert_true(waitq_empty(&q));
    run(f);
    assert_int_equal(turn_count, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_ptr_equal(turns[i], &f->ops[i]);
        assert_int_equal(f->ops[i].wait.result, -ENOSPC);
        assert_null(f->ops[i].wait.event);
    }
    waitq_wake(&q, 0);
    run(f);
    assert_int_equal(turn_count, 3);
}

// A waiter that waits again when it is woken waits for the next event.
static struct waitq again;

static void wait_again(struct op *op)
{
    note_turn(op);
    if (turn_count < 3)
        op_park(op, &again);
}

static void who_waits_again_waits_for_the_next_event(void **state)
{
    static const struct op_machine waiting = OP_MACHINE("waiting", wait_again, state_names);
    struct fixture *f = *state;

    waitq_init(&again, "a test");
    op_init(&f->ops[0], NULL, &f->runq, &waiting);
    op_post(&f->ops[0]);
    run(f);
    assert_int_equal(turn_count, 1);
    waitq_wake(&again, 0);
    run(f);
    assert_int_equal(turn_count, 2);
    assert_false(waitq_empty(&again));
}

// A sync takes over the waiters, behind those that already wait for it.
static void moved_waiters_stand_behind(void **state)
{
    struct fixture *f = *state;
    struct waitq to, from;

    waitq_init(&to, "the first");
    waitq_init(&from, "the second");
    op_park(&f->ops[2], &from);
    op_park(&f->ops[0], &to);
    op_park(&f->ops[3], &from);
    waitq_move(&to, &from);
    assert_true(waitq_empty(&from));
    waitq_wake(&from, -EIO);
    waitq_wake(&to, 0);
    run(f);
    assert_int_equal(turn_count, 3);
    assert_ptr_equal(turns[0], &f->ops[0]);
    assert_ptr_equal(turns[1], &f->ops[2]);
    assert_ptr_equal(turns[2], &f->ops[3]);
    assert_int_equal(f->ops[2].wait.result, 0);
}

// ---- Epochs -------------------------------------------------------------------------------------

static void a_stamp_passes_when_all_older_members_have_left(void **state)
{
    struct epoch_member first = {0}, second = {0}, later = {0};
    struct epochs epochs;

    (void)state;
    epochs_init(&epochs, "older ones");
    assert_true(epoch_passed(&epochs, epoch_now(&epochs)));
    epoch_enter(&epochs, &first);
    epoch_enter(&epochs, &second);
    uint64_t stamp = epoch_now(&epochs);
    // A member that enters now delays nothing.
    epoch_enter(&epochs, &later);
    assert_false(epoch_passed(&epochs, stamp));
    epoch_leave(&first);
    assert_false(epoch_passed(&epochs, stamp));
    epoch_leave(&second);
    assert_true(epoch_passed(&epochs, stamp));
    assert_false(epoch_passed(&epochs, epoch_now(&epochs)));
    epoch_leave(&later);
    epoch_leave(&later);
}

// A plan that is made anew does not hold back clusters that were given up before it.
static void entering_again_leaves_the_old_epoch(void **state)
{
    struct epoch_member member = {0}, other = {0};
    struct epochs epochs;

    (void)state;
    epochs_init(&epochs, "older ones");
    epoch_enter(&epochs, &member);
    // Alone and the newest: a new epoch would show it nothing else.
    uint64_t next = epoch_now(&epochs);
    epoch_enter(&epochs, &member);
    assert_int_equal(epoch_now(&epochs), next);
    epoch_enter(&epochs, &other);
    uint64_t stamp = epoch_now(&epochs);
    epoch_enter(&epochs, &member);
    epoch_leave(&other);
    assert_true(epoch_passed(&epochs, stamp));
    epoch_leave(&member);
}

static void only_the_oldest_wakes(void **state)
{
    struct fixture *f = *state;
    struct epoch_member first = {0}, second = {0};
    struct epochs epochs;

    epochs_init(&epochs, "older ones");
    epoch_enter(&epochs, &first);
    epoch_enter(&epochs, &second);
    op_park(&f->ops[0], &epochs.oldest_left);
    epoch_leave(&second);
    run(f);
    assert_int_equal(turn_count, 0);
    epoch_leave(&first);
    run(f);
    assert_int_equal(turn_count, 1);
}

// A loan has the epoch of its read, however many plans began since.
static void one_can_enter_an_earlier_epoch(void **state)
{
    struct epoch_member plans[3] = {0}, holders[3] = {0};
    struct epochs epochs, held;

    (void)state;
    epochs_init(&epochs, "plans");
    epochs_init(&held, "holders");
    for (size_t i = 0; i < 3; i++)
        epoch_enter(&epochs, &plans[i]);
    epoch_enter_at(&held, &holders[2], plans[2].epoch);
    epoch_enter_at(&held, &holders[0], plans[0].epoch);
    epoch_enter_at(&held, &holders[1], plans[1].epoch);
    epoch_leave(&holders[2]);
    assert_false(epoch_passed(&held, plans[1].epoch));
    epoch_leave(&holders[0]);
    assert_true(epoch_passed(&held, plans[1].epoch));
    assert_false(epoch_passed(&held, plans[2].epoch));
    epoch_leave(&holders[1]);
    for (size_t i = 0; i < 3; i++)
        epoch_leave(&plans[i]);
}

// An op that waits does not delay the event that it waits for.
static void parking_leaves_the_epoch(void **state)
{
    struct fixture *f = *state;
    struct epochs epochs;
    struct waitq q;

    epochs_init(&epochs, "older ones");
    waitq_init(&q, "a test");
    epoch_enter(&epochs, &f->ops[0].plan);
    uint64_t stamp = epoch_now(&epochs);
    assert_false(epoch_passed(&epochs, stamp));
    op_park(&f->ops[0], &q);
    assert_true(epoch_passed(&epochs, stamp));
    waitq_wake(&q, 0);
    run(f);
}

// ---- Locked guest clusters ----------------------------------------------------------------------

static void a_range_that_touches_a_locked_one_waits(void **state)
{
    static const struct {
        uint64_t first, end;
        int result;
    } rows[] = {
        {0, 10, 0}, {9, 11, OP_PARKED}, {12, 13, OP_PARKED}, {0, 99, OP_PARKED}, {20, 21, 0}};
    struct inflight inflight;
    struct inflight_range range = {0};

    inflight_init(&inflight);
    waitq_init(&range.waiters, "a change");
    inflight_unlock(&inflight, &range); // not locked: nothing happens
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        set_up(state);
        struct fixture *f = *state;

        inflight_lock(&inflight, &range, 10, 20);
        assert_int_equal(inflight_wait(&inflight, rows[i].first, rows[i].end, &f->ops[0]),
                         rows[i].result);
        run(f);
        assert_int_equal(turn_count, 0);
        inflight_unlock(&inflight, &range);
        run(f);
        assert_int_equal(turn_count, rows[i].result == OP_PARKED);
        assert_int_equal(inflight_wait(&inflight, rows[i].first, rows[i].end, &f->ops[1]), 0);
    }
}

// ---- Ops ----------------------------------------------------------------------------------------

static void the_end_of_an_io_is_a_turn(void **state)
{
    struct scripted_file *disk = scripted_file_new();
    struct op op;

    (void)state;
    op_init(&op, NULL, &disk->runq, &machine);
    op_submit(&op, &disk->file, FILE_DATASYNC, 0, 0, NULL, 0);
    scripted_file_turns(disk);
    assert_int_equal(turn_count, 0);
    scripted_file_end(disk, 0, -EIO);
    // Not inside the call that ends it.
    assert_int_equal(turn_count, 0);
    scripted_file_turns(disk);
    assert_int_equal(turn_count, 1);
    assert_int_equal(op.wait.result, -EIO);
    scripted_file_free(disk);
}

static void unused(struct op *op)
{
    (void)op;
}

static void an_op_says_what_it_waits_for(void **state)
{
    struct fixture *f = *state;
    struct op *op = &f->ops[0];
    char text[200];
    struct waitq q;

    op_describe(op, text, sizeof(text));
    assert_string_equal(text, "test, state first");
    op_post(op);
    op_describe(op, text, sizeof(text));
    assert_string_equal(text, "test, state first: its turn is due");
    run(f);
    waitq_init(&q, "rain");
    op->state = 2;
    op_park(op, &q);
    op_describe(op, text, sizeof(text));
    assert_string_equal(text, "test, state third: waits for rain");
    waitq_wake(&q, 0);
    run(f);

    *op = (struct op){
        .machine = &machine, .state = 1, .length = 8, .offset = 2, .pos = 5, .done = unused};
    op->io =
        (struct file_io){.kind = FILE_PUNCH, .offset = 512, .length = 3, .result = FILE_IO_RUNNING};
    op_describe(op, text, sizeof(text));
    assert_string_equal(text,
                        "test of 8 bytes at 2 (3 done), state ?: waits for a punch of 3 bytes "
                        "at host offset 512");
    // Cut where there is no room, and always terminated.
    for (size_t room = 1; room < sizeof(text); room++) {
        char cut[200];

        memset(cut, 'x', sizeof(cut));
        op_describe(op, cut, room);
        assert_true(strlen(cut) < room);
        assert_memory_equal(cut, text, strlen(cut));
    }
    op->state = 7;
    assert_string_equal(op_state_name(op), "?");
    op->state = -1;
    assert_string_equal(op_state_name(op), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(all_are_woken_once_in_order, set_up),
        cmocka_unit_test_setup(who_waits_again_waits_for_the_next_event, set_up),
        cmocka_unit_test_setup(moved_waiters_stand_behind, set_up),
        cmocka_unit_test(a_stamp_passes_when_all_older_members_have_left),
        cmocka_unit_test(entering_again_leaves_the_old_epoch),
        cmocka_unit_test_setup(only_the_oldest_wakes, set_up),
        cmocka_unit_test(one_can_enter_an_earlier_epoch),
        cmocka_unit_test_setup(parking_leaves_the_epoch, set_up),
        cmocka_unit_test(a_range_that_touches_a_locked_one_waits),
        cmocka_unit_test_setup(the_end_of_an_io_is_a_turn, set_up),
        cmocka_unit_test_setup(an_op_says_what_it_waits_for, set_up),
    };

    return cmocka_run_group_tests_name("waitq", tests, NULL, NULL);
}
