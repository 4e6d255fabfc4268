// SPDX-License-Identifier: Apache-2.0
// test_scan.c: a pass over ranges of a file: all of them, in order, and in turns.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "qcow2/walk/scan.h"

#define RANGE 4096u
#define IN_FLIGHT_MAX 32

// A file in which only some ranges have data, and whose reads end when the test says so.
struct fixture {
    struct runq runq;
    struct file_ops ops;
    struct file file;
    struct scan scan;
    uint64_t ranges;
    uint64_t data_every; // every so many-th range has data; 0: none has
    bool cannot_tell;    // data from holes
    uint64_t asked;      // how often
    uint64_t named;      // ranges that were asked for
    uint64_t taken;
    uint64_t last; // 1 + the last range that was taken
    struct file_io *reads[IN_FLIGHT_MAX];
    size_t in_flight;
    bool done;
    int result;
    int fail_at; // this many ranges are taken without an error; -1: all
};

static struct fixture *of(struct file *file)
{
    return (struct fixture *)((char *)file - offsetof(struct fixture, file));
}

static int64_t size(struct file *file)
{
    return (int64_t)(of(file)->ranges * RANGE);
}

static bool has_data(const struct fixture *f, uint64_t range)
{
    return f->data_every != 0 && range % f->data_every == 0;
}

static void tell_extents(struct fixture *f, struct file_io *io)
{
    uint64_t range = io->offset / RANGE;

    while (io->extent_count < io->extent_max && range < f->ranges) {
        uint64_t first = range;
        bool data = has_data(f, first);

        while (range < f->ranges && has_data(f, range) == data)
            range++;
        io->extents[io->extent_count++] = (struct file_extent){
            (range - first) * RANGE, data ? FILE_EXTENT_DATA : FILE_EXTENT_HOLE};
    }
}

static void submit(struct file *file, struct file_io *io)
{
    struct fixture *f = of(file);

    if (io->kind == FILE_EXTENTS) {
        f->asked++;
        if (!f->cannot_tell)
            tell_extents(f, io);
        file_io_complete(io, f->cannot_tell ? -EOPNOTSUPP : 0);
        return;
    }
    assert_true(f->in_flight < IN_FLIGHT_MAX);
    f->reads[f->in_flight++] = io;
}

static bool next(void *context, struct scan_range *range)
{
    struct fixture *f = context;

    if (f->named == f->ranges)
        return false;
    *range = (struct scan_range){.offset = f->named * RANGE, .length = RANGE, .tag = f->named};
    f->named++;
    return true;
}

static int take(void *context, const struct scan_range *range, const uint8_t *bytes)
{
    struct fixture *f = context;

    assert_true(range->tag >= f->last);
    assert_int_equal(bytes[0], (uint8_t)range->tag);
    f->last = range->tag + 1;
    f->taken++;
    return f->fail_at >= 0 && f->taken > (uint64_t)f->fail_at ? -ENOMEM : 0;
}

static void done(void *context, int result)
{
    struct fixture *f = context;

    assert_false(f->done);
    f->done = true;
    f->result = result;
}

static void begin(struct fixture *f, uint64_t ranges, uint64_t data_every)
{
    *f = (struct fixture){.ranges = ranges, .data_every = data_every, .fail_at = -1};
    runq_init(&f->runq);
    f->ops = (struct file_ops){.submit = submit, .size = size};
    f->file = (struct file){.ops = &f->ops, .runq = &f->runq};
    f->scan =
        (struct scan){.file = &f->file, .context = f, .next = next, .take = take, .done = done};
    scan_start(&f->scan);
    assert_int_equal(f->named, 0);
}

// Ends one of the reads in flight, whichever the number says.
static void end_read(struct fixture *f, size_t number)
{
    struct file_io *io = f->reads[number];

    f->reads[number] = f->reads[--f->in_flight];
    memset(io->iov[0].iov_base, (int)(io->offset / RANGE), io->length);
    file_io_complete(io, 0);
}

static void run(struct fixture *f, unsigned seed)
{
    while (!f->done) {
        while (runq_run(&f->runq))
            ;
        if (f->in_flight > 0)
            end_read(f, (size_t)rand_r(&seed) % f->in_flight);
    }
    assert_int_equal(f->in_flight, 0);
}

static void all_data_is_taken_in_order(void **state)
{
    struct fixture f;

    (void)state;
    for (uint64_t every = 1; every < 200; every += 33) {
        begin(&f, 5000, every);
        run(&f, (unsigned)every);
        assert_int_equal(f.result, 0);
        assert_int_equal(f.taken, (5000 + every - 1) / every);
    }
}

// Ranges that read as zeros are then read.
static void all_is_read_where_holes_are_not_known(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, 1000, 1);
    f.cannot_tell = true;
    run(&f, 1);
    assert_int_equal(f.result, 0);
    assert_int_equal(f.taken, 1000);
    assert_int_equal(f.asked, 1);
}

static void an_error_ends_it(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, 1000, 1);
    f.fail_at = 100;
    run(&f, 1);
    assert_int_equal(f.result, -ENOMEM);
    assert_int_equal(f.taken, 101);
}

static void many_holes_are_passed_in_turns(void **state)
{
    struct fixture f;
    uint64_t turns = 0;

    (void)state;
    begin(&f, 10000, 0);
    while (!f.done) {
        uint64_t before = f.named;

        assert_true(runq_run(&f.runq));
        assert_true(f.named - before <= SCAN_HOLES_A_TURN);
        turns++;
    }
    assert_int_equal(f.result, 0);
    assert_int_equal(f.named, 10000);
    assert_true(turns >= 10000 / SCAN_HOLES_A_TURN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_data_is_taken_in_order),
        cmocka_unit_test(all_is_read_where_holes_are_not_known),
        cmocka_unit_test(an_error_ends_it),
        cmocka_unit_test(many_holes_are_passed_in_turns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
