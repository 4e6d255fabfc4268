// SPDX-License-Identifier: Apache-2.0
// test_writeback.c: pieces on their way to disk: neighbours in one write, a limit of writes in
// flight, the first error told once.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/op.h"
#include "qcow2/durable/writeback.h"
#include "tests/unit/scripted_file.h"

#define PIECE 4096u

struct fixture {
    struct scripted_file *disk;
    struct writeback wb;
    struct op op;
};

static unsigned turns;

static void turn(struct op *op)
{
    (void)op;
    turns++;
}

static const char *const state_names[] = {"only"};
static const struct op_machine machine = OP_MACHINE("writer", turn, state_names);

static int set_up(void **state)
{
    static struct fixture f;

    f = (struct fixture){.disk = scripted_file_new()};
    op_init(&f.op, NULL, &f.disk->runq, &machine);
    turns = 0;
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    writeback_free(&f->wb);
    scripted_file_free(f->disk);
    return 0;
}

// Adds a piece at a place of the file that is counted in pieces; its bytes are its number.
static void add(struct fixture *f, uint64_t place)
{
    void *room = writeback_room(&f->wb, PIECE);

    assert_non_null(room);
    memset(room, (int)f->wb.count + 1, PIECE);
    writeback_add(&f->wb, &(struct writeback_piece){.offset = place * PIECE, .length = PIECE});
}

static void start(struct fixture *f)
{
    writeback_start(&f->wb, &f->op, &f->disk->file);
}

static void neighbours_go_out_in_one_write(void **state)
{
    struct fixture *f = *state;

    add(f, 3);
    add(f, 4);
    add(f, 9);
    start(f);
    assert_int_equal(f->disk->queued, 2);
    assert_int_equal(f->disk->queue[0]->length, 2 * PIECE);
    scripted_file_run(f->disk);
    assert_int_equal(turns, 1);
    assert_int_equal(f->op.wait.result, 0);
    assert_int_equal(f->disk->bytes[3 * PIECE], 1);
    assert_int_equal(f->disk->bytes[5 * PIECE - 1], 2);
    assert_int_equal(f->disk->bytes[9 * PIECE], 3);
}

// The longest write is 1 MiB.
static void a_long_run_is_cut(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 0; i < 300; i++)
        add(f, i);
    start(f);
    assert_int_equal(f->disk->queued, 2);
    assert_int_equal(f->disk->queue[0]->length, 256 * PIECE);
    assert_int_equal(f->disk->queue[1]->length, 44 * PIECE);
    scripted_file_run(f->disk);
    for (uint64_t i = 0; i < 300; i++)
        assert_int_equal(f->disk->bytes[i * PIECE], (uint8_t)(i + 1));
}

static void so_many_are_in_flight_at_once(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 0; i < 100; i++)
        add(f, 2 * i);
    start(f);
    assert_int_equal(f->disk->queued, WRITEBACK_DEPTH);
    while (f->disk->queued > 0) {
        assert_int_equal(turns, 0);
        scripted_file_end(f->disk, f->disk->queued / 2, 0);
        scripted_file_turns(f->disk);
        assert_true(f->disk->queued <= WRITEBACK_DEPTH);
    }
    assert_int_equal(turns, 1);
    assert_int_equal(f->disk->submitted[FILE_WRITE], 100);
}

// Writes in flight are waited for; no more are submitted.
static void the_first_error_ends_it(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 0; i < 40; i++)
        add(f, 2 * i);
    start(f);
    scripted_file_end(f->disk, 5, -ENOSPC);
    scripted_file_end(f->disk, 2, -EIO);
    scripted_file_turns(f->disk);
    assert_int_equal(f->disk->queued, WRITEBACK_DEPTH - 2);
    assert_int_equal(turns, 0);
    scripted_file_run(f->disk);
    assert_int_equal(turns, 1);
    assert_int_equal(f->op.wait.result, -ENOSPC);
    assert_int_equal(f->disk->submitted[FILE_WRITE], WRITEBACK_DEPTH);
    // The next one begins anew.
    writeback_clear(&f->wb);
    add(f, 1);
    start(f);
    scripted_file_run(f->disk);
    assert_int_equal(turns, 2);
    assert_int_equal(f->op.wait.result, 0);
}

static void nothing_ends_in_the_next_turn(void **state)
{
    struct fixture *f = *state;

    start(f);
    assert_int_equal(turns, 0);
    scripted_file_turns(f->disk);
    assert_int_equal(turns, 1);
    assert_int_equal(f->op.wait.result, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(neighbours_go_out_in_one_write, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_long_run_is_cut, set_up, tear_down),
        cmocka_unit_test_setup_teardown(so_many_are_in_flight_at_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_first_error_ends_it, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nothing_ends_in_the_next_turn, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("writeback", tests, NULL, NULL);
}
