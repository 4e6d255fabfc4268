// SPDX-License-Identifier: Apache-2.0
// test_sync_queue.c: a request for a sync gets one that begins afterwards; the demand of a failed
// sync is not lost. Also lines of the log.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"

struct fixture {
    struct runq runq;
    struct image image;
    struct op sync;   // stands for the sync's op
    struct op ops[3]; // who waits
    struct waitq current;
    unsigned due; // turns of the sync
    unsigned woken;
};

static struct fixture f;

static void sync_turn(struct op *op)
{
    (void)op;
    f.due++;
}

static void waiter_turn(struct op *op)
{
    (void)op;
    f.woken++;
}

static const char *const state_names[] = {"only"};
static const struct op_machine sync_machine = OP_MACHINE("sync", sync_turn, state_names);
static const struct op_machine waiter_machine = OP_MACHINE("waiter", waiter_turn, state_names);

static int set_up(void **state)
{
    (void)state;
    f = (struct fixture){0};
    runq_init(&f.runq);
    waitq_init(&f.current, "a sync");
    op_init(&f.sync, &f.image, &f.runq, &sync_machine);
    sync_queue_init(&f.image.syncs, &f.sync);
    for (size_t i = 0; i < 3; i++)
        op_init(&f.ops[i], &f.image, &f.runq, &waiter_machine);
    return 0;
}

static void run(void)
{
    while (runq_run(&f.runq))
        ;
}

static struct sync_demand begin(void)
{
    run();
    return sync_queue_begin(&f.image.syncs, &f.current);
}

static void end(int result)
{
    waitq_wake(&f.current, result);
    sync_queue_end(&f.image.syncs);
    run();
}

static void all_who_ask_before_it_begins_share_one(void **state)
{
    (void)state;
    sync_wait(&f.ops[0]);
    sync_wait(&f.ops[1]);
    sync_request(&f.image);
    run();
    assert_int_equal(f.due, 1);
    begin();
    assert_true(waitq_empty(&f.image.syncs.waiting));
    end(0);
    assert_int_equal(f.woken, 2);
    assert_int_equal(f.due, 1);
    assert_int_equal(f.image.syncs.state, SYNC_QUEUE_IDLE);
}

static void who_asks_while_one_runs_gets_the_next(void **state)
{
    (void)state;
    sync_wait(&f.ops[0]);
    begin();
    sync_wait(&f.ops[1]);
    sync_wait(&f.ops[2]);
    run();
    assert_int_equal(f.due, 1); // the next one does not begin beside it
    end(-EIO);
    assert_int_equal(f.woken, 1);
    assert_int_equal(f.ops[0].wait.result, -EIO);
    assert_int_equal(f.due, 2);
    begin();
    end(0);
    assert_int_equal(f.woken, 3);
    assert_int_equal(f.ops[2].wait.result, 0);
    assert_int_equal(f.image.syncs.state, SYNC_QUEUE_IDLE);
}

static void demand_is_taken_over_and_put_back(void **state)
{
    (void)state;
    sync_note_write(&f.image);
    sync_need_barrier(&f.image);
    sync_note_answered(&f.image, 700);
    sync_request(&f.image);
    struct sync_demand demand = begin();
    assert_true(demand.data && demand.barrier);
    assert_int_equal(demand.bytes, 700);
    assert_false(f.image.syncs.demand.data || f.image.syncs.demand.barrier);
    assert_int_equal(f.image.syncs.demand.bytes, 0);

    // New requests are kept beside the demand that is put back.
    sync_note_answered(&f.image, 11);
    sync_queue_put_back(&f.image.syncs, demand);
    assert_true(f.image.syncs.demand.data && f.image.syncs.demand.barrier);
    assert_int_equal(f.image.syncs.demand.bytes, 711);
    sync_queue_put_back(&f.image.syncs, (struct sync_demand){0});
    assert_true(f.image.syncs.demand.data && f.image.syncs.demand.barrier);
    end(-ENOSPC);
}

// ---- Lines of the log ---------------------------------------------------------------------------

static char line[1000];

static void keep(void *context, const char *text)
{
    assert_ptr_equal(context, &f);
    snprintf(line, sizeof(line), "%s", text);
}

static void lines_begin_with_the_file(void **state)
{
    static char name[] = "disk.qcow2";
    struct file file = {.name = name};

    (void)state;
    f.image.file = &file;
    image_log(&f.image, "nobody hears %d", 1);
    f.image.host = (struct image_host){.context = &f, .log = keep, .trace = keep};
    image_log(&f.image, "%d of %s", 3, "them");
    assert_string_equal(line, "'disk.qcow2': 3 of them");
    image_trace_op(&f.image, &f.ops[0], "starts");
    assert_non_null(strstr(line, "'disk.qcow2': "));
    assert_non_null(strstr(line, " starts: waiter, state only"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(all_who_ask_before_it_begins_share_one, set_up),
        cmocka_unit_test_setup(who_asks_while_one_runs_gets_the_next, set_up),
        cmocka_unit_test_setup(demand_is_taken_over_and_put_back, set_up),
        cmocka_unit_test_setup(lines_begin_with_the_file, set_up),
    };

    return cmocka_run_group_tests_name("sync_queue", tests, NULL, NULL);
}
