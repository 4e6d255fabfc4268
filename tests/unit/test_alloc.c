// SPDX-License-Identifier: Apache-2.0
// test_alloc.c: new clusters: reserving host space in steps, a full host, free clusters that are
// used again, and ops that wait for clusters that are becoming free.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/op.h"
#include "qcow2/format/format.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"
#include "tests/unit/engine.h"

#define CLUSTER 65536u

// An op of the test's own, which takes clusters.
struct taker {
    struct op op;
    unsigned turns;
};

static void take_turn(struct op *op)
{
    ((struct taker *)((char *)op - offsetof(struct taker, op)))->turns++;
}

static const char *const state_names[] = {"only"};
static const struct op_machine taker_machine = OP_MACHINE("taker", take_turn, state_names);

// Its refcounts are read first.
static void begin_taker(struct engine *e, struct taker *t)
{
    *t = (struct taker){0};
    op_init(&t->op, e->image, e->image->runq, &taker_machine);
    while (refcounts_load(&t->op, e->image->alloc->fresh) == OP_PARKED)
        engine_run(e);
    engine_watch(e);
    t->turns = 0;
}

// Takes clusters, and waits for everything that this needs.
static int take(struct engine *e, struct taker *t, uint64_t want, struct alloc_run *run)
{
    int result;

    while ((result = alloc_clusters(&t->op, want, false, run)) == OP_PARKED)
        engine_run(e);
    return result;
}

// Ends the reservation that is in flight.
static void end_reservation(struct engine *e, int result)
{
    scripted_file_end(e->disk, engine_reach(e, "reserve"), result);
    scripted_file_turns(e->disk);
}

// ---- Reservations -------------------------------------------------------------------------------

static void space_is_reserved_in_steps(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    begin_taker(&e, &t);
    uint64_t end = e.image->alloc->reserve.end;
    assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_true(run.zero);
    assert_int_equal(e.image->alloc->reserve.end, end + CLUSTER + RESERVE_STEP_MIN);
    for (unsigned i = 0; i < RESERVE_STEP_MIN / CLUSTER; i++)
        assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_string_equal(e.order, "reserve.");
    assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_string_equal(e.order, "reserve. reserve.");
    // An eighth of a larger file, up to a limit.
    e.image->alloc->reserve.end = 80u << 20;
    assert_int_equal(take(&e, &t, 1, &run), 0);
    e.image->alloc->fresh = 1280;
    assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_int_equal(e.image->alloc->reserve.end, (90u << 20) + CLUSTER);
    e.image->alloc->fresh = 1440;
    e.image->alloc->reserve.end = 1ull << 30;
    e.image->alloc->fresh = (1u << 30) / CLUSTER;
    assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_int_equal(e.image->alloc->reserve.end, (1ull << 30) + CLUSTER + RESERVE_STEP_MAX);
    engine_free(&e);
}

// No room for the step: the bytes that are needed are requested alone. No room for these: one op
// sees the error, and the next one tries again, with a step.
static void a_full_host_is_told_once(void **state)
{
    struct alloc_run run;
    struct taker t, u;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    begin_taker(&e, &t);
    begin_taker(&e, &u);
    assert_int_equal(alloc_clusters(&t.op, 2, false, &run), OP_PARKED);
    assert_int_equal(e.disk->queue[0]->length, 2 * CLUSTER + RESERVE_STEP_MIN);
    end_reservation(&e, -ENOSPC);
    assert_int_equal(t.turns, 1);
    assert_int_equal(t.op.wait.result, 0);

    assert_int_equal(alloc_clusters(&t.op, 2, false, &run), OP_PARKED);
    assert_int_equal(e.disk->queue[0]->length, 2 * CLUSTER);
    assert_int_equal(alloc_clusters(&u.op, 1, false, &run), OP_PARKED);
    assert_int_equal(e.disk->queued, 1); // one reservation at a time
    end_reservation(&e, -ENOSPC);
    assert_int_equal(t.turns + u.turns, 3);
    assert_int_equal(alloc_clusters(&t.op, 2, false, &run), -ENOSPC);
    assert_int_equal(run.count, 0);

    assert_int_equal(alloc_clusters(&u.op, 1, false, &run), OP_PARKED);
    assert_int_equal(e.disk->queue[0]->length, CLUSTER + RESERVE_STEP_MIN);
    end_reservation(&e, 0);
    assert_int_equal(alloc_clusters(&u.op, 1, false, &run), 0);
    assert_int_equal(run.count, 1);
    engine_free(&e);
}

// A host that cannot reserve makes the file longer; one that cannot do that is not asked again.
static void a_host_that_cannot_reserve(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    begin_taker(&e, &t);
    assert_int_equal(alloc_clusters(&t.op, 1, false, &run), OP_PARKED);
    end_reservation(&e, -EOPNOTSUPP);
    assert_false(alloc_reserves(e.image->alloc));
    assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_string_equal(e.order, "reserve. cut.");
    assert_int_equal(e.disk->size, (run.first + 1) * CLUSTER + RESERVE_STEP_MIN);

    e.image->alloc->fresh += 100;
    assert_int_equal(alloc_clusters(&t.op, 1, false, &run), OP_PARKED);
    scripted_file_end(e.disk, engine_reach(&e, "cut"), -EINVAL);
    scripted_file_turns(e.disk);
    assert_int_equal(alloc_clusters(&t.op, 1, false, &run), 0);
    assert_int_equal(e.image->alloc->reserve.way, RESERVE_NOTHING);
    engine_free(&e);
}

// Writing zeroes may be the first to find that the host cannot reserve.
static void who_knows_that_it_cannot_says_so(void **state)
{
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    assert_true(alloc_reserves(e.image->alloc));
    alloc_cannot_reserve(e.image->alloc);
    assert_false(alloc_reserves(e.image->alloc));
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    assert_int_equal(engine_count(&e, "reserve"), 0);
    assert_int_equal(engine_count(&e, "cut"), 1);
    engine_end(&e);
}

// ---- Which clusters -----------------------------------------------------------------------------

// Free clusters below the fresh space come first, longest runs first; they do not count as zeros.
static void free_clusters_are_used_again(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    begin_taker(&e, &t);
    assert_int_equal(take(&e, &t, 8, &run), 0);
    assert_int_equal(run.count, 8);
    uint64_t first = run.first;
    static const unsigned freed[] = {1, 3, 4, 6};
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(refcounts_set(e.image->refcounts, first + freed[i], 0), 0);
    // The cluster was not announced as free.
    assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_int_equal(run.first, first + 8);
    alloc_freed(e.image->alloc);
    assert_int_equal(take(&e, &t, 2, &run), 0);
    assert_int_equal(run.first, first + 3);
    assert_int_equal(run.count, 2);
    assert_false(run.zero);
    // The search goes on from there, then from the front.
    assert_int_equal(take(&e, &t, 2, &run), 0);
    assert_int_equal(run.first, first + 6);
    assert_int_equal(take(&e, &t, 2, &run), 0);
    assert_int_equal(run.first, first + 1);
    assert_int_equal(take(&e, &t, 2, &run), 0);
    assert_int_equal(run.first, first + 9);
    assert_true(run.zero);
    // Tables need zeros.
    refcounts_set(e.image->refcounts, first, 0);
    alloc_freed(e.image->alloc);
    assert_int_equal(alloc_clusters(&t.op, 1, true, &run), 0);
    assert_int_equal(run.first, first + 11);
    engine_free(&e);
}

// A damaged refcount of the header's cluster does not have that handed out, neither from the front
// nor when the search comes round.
static void the_header_is_never_free(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    begin_taker(&e, &t);
    assert_int_equal(refcounts_set(e.image->refcounts, 0, 0), 0);
    for (unsigned i = 0; i < 3; i++) {
        alloc_freed(e.image->alloc);
        assert_int_equal(take(&e, &t, 1, &run), 0);
        assert_true(run.zero);
    }
    uint64_t first = run.first;
    assert_int_equal(refcounts_set(e.image->refcounts, first, 0), 0);
    alloc_freed(e.image->alloc);
    assert_int_equal(take(&e, &t, 2, &run), 0);
    assert_int_equal(run.first, first);
    assert_int_equal(run.count, 1);
    engine_free(&e);
}

// If refcounts are not known to be right, clusters that look free are not taken.
static void without_reuse_all_is_fresh(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    begin_taker(&e, &t);
    assert_int_equal(take(&e, &t, 3, &run), 0);
    refcounts_set(e.image->refcounts, run.first + 1, 0);
    alloc_freed(e.image->alloc);
    e.image->alloc->reuse = false;
    uint64_t fresh = e.image->alloc->fresh;
    assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_int_equal(run.first, fresh);
    engine_free(&e);
}

// Refcounts beyond the end of the file are leaks, not free space.
static void a_leak_in_fresh_space_is_passed_over(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;
    uint64_t first;

    (void)state;
    engine_begin(&e, &engine_large);
    begin_taker(&e, &t);
    uint64_t fresh = e.image->alloc->fresh;
    refcounts_set(e.image->refcounts, fresh, 1);
    refcounts_set(e.image->refcounts, fresh + 3, 1);
    assert_int_equal(take(&e, &t, 9, &run), 0);
    assert_int_equal(run.first, fresh + 1);
    assert_int_equal(run.count, 2);
    refcounts_set(e.image->refcounts, fresh + 7, 1);
    while ((engine_run(&e), alloc_fresh_exact(&t.op, 4, &first)) == OP_PARKED)
        ;
    assert_int_equal(first, fresh + 8);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(refcounts_get(e.image->refcounts, first + i), 1);
    assert_int_equal(e.image->alloc->fresh, fresh + 12);
    engine_free(&e);
}

// Takes a row of exactly so many clusters, also across refcount blocks.
static void a_row_may_span_blocks(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;
    uint64_t first;
    int result;

    (void)state;
    engine_begin(&e, &engine_small);
    begin_taker(&e, &t);
    e.image->alloc->fresh = 250;
    while ((result = alloc_clusters(&t.op, 20, true, &run)) == OP_PARKED)
        engine_run(&e);
    assert_int_equal(result, 0);
    assert_int_equal(run.count, 6); // a run ends with its page
    e.image->alloc->fresh = 500;
    while ((result = alloc_fresh_exact(&t.op, 20, &first)) == OP_PARKED)
        engine_run(&e);
    assert_int_equal(result, 0);
    assert_int_equal(first, 500);
    assert_int_equal(refcounts_get(e.image->refcounts, 519), 1);
    engine_free(&e);
}

// The search skips a page that cannot be read; only an op that needs the page sees the error.
static void refcounts_that_cannot_be_read(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    t = (struct taker){0};
    op_init(&t.op, e.image, e.image->runq, &taker_machine);
    assert_int_equal(alloc_clusters(&t.op, 1, false, &run), OP_PARKED);
    scripted_file_end(e.disk, 0, -EIO);
    engine_run(&e);
    // The search has skipped the page and come to fresh space, which is in that page.
    int result;
    unsigned tries = 0;
    while ((result = alloc_clusters(&t.op, 1, false, &run)) == OP_PARKED && tries++ < 5) {
        if (e.disk->queued > 0 && e.disk->queue[0]->kind == FILE_READ)
            scripted_file_end(e.disk, 0, -EIO);
        engine_run(&e);
    }
    assert_int_equal(result, -EIO);
    assert_true(engine_said(&e, "cannot read the refcount block"));
    engine_free(&e);
}

// ---- Ends of space ------------------------------------------------------------------------------

// A device of so many clusters that holds the image.
static void begin_device(struct engine *e, unsigned clusters)
{
    *e = (struct engine){.disk = scripted_file_new()};
    scripted_file_create(e->disk, &engine_large);
    e->disk->size = (uint64_t)clusters * CLUSTER;
    e->disk->file.fresh_is_zero = false;
    engine_open(e, &(struct image_options){.format = IMAGE_FORMAT_QCOW2});
}

static void a_device_ends(void **state)
{
    struct engine e;

    (void)state;
    begin_device(&e, 8); // header, L1, refcount table and block; an L2 table, three for data
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(engine_write(&e, i * CLUSTER, 512, 1), 0);
    assert_int_equal(engine_write(&e, 3 * CLUSTER, 512, 1), -ENOSPC);
    assert_int_equal(engine_count(&e, "reserve") + engine_count(&e, "cut"), 0);
    engine_expect(&e, 3 * CLUSTER, 512, 0);
    engine_end(&e);
}

// An op that finds no space waits until given-up clusters are free.
static void who_finds_no_space_waits_for_what_becomes_free(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    begin_device(&e, 8);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(engine_write(&e, i * CLUSTER, CLUSTER, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, CLUSTER, CLUSTER), 0);
    engine_watch(&e);
    engine_start(&e, &write, OP_WRITE, 0, 5 * CLUSTER, CLUSTER);
    engine_run(&e);
    assert_int_equal(write.op.result, 0);
    // The unlinking was durable before the cluster had a new owner.
    assert_string_equal(e.order, "l2. barrier. data.");
    engine_end(&e);
}

// The cluster is being read meanwhile: the op waits for the end of the read, not for ever.
static void a_reader_is_waited_for(void **state)
{
    struct request read, write;
    struct engine e;

    (void)state;
    begin_device(&e, 8);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(engine_write(&e, i * CLUSTER, CLUSTER, 1), 0);
    engine_start(&e, &read, OP_READ, 0, CLUSTER, CLUSTER);
    engine_hold(&e, "read-data");
    struct request discard;
    engine_start(&e, &discard, OP_DISCARD, 0, CLUSTER, CLUSTER);
    engine_start(&e, &write, OP_WRITE, 0, 5 * CLUSTER, CLUSTER);
    engine_hold(&e, "read-data");
    assert_int_equal(discard.done, 1);
    assert_int_equal(read.done, 0);
    engine_run(&e);
    assert_int_equal(write.done, 1);
    engine_end(&e);
}

// Behind the largest refcount table, and behind what the format can address.
static void the_format_ends(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;
    uint64_t first;

    (void)state;
    engine_begin(&e, &engine_small);
    begin_taker(&e, &t);
    e.image->alloc->fresh = (uint64_t)HEADER_REFCOUNT_TABLE_BYTES_MAX / 8 * 256;
    assert_int_equal(alloc_clusters(&t.op, 1, true, &run), -ENOSPC);
    assert_int_equal(alloc_fresh_exact(&t.op, 1, &first), -ENOSPC);
    engine_free(&e);
}

// Pages without a block take no wait, so they are passed in turns.
static void many_pages_are_learned_in_turns(void **state)
{
    struct alloc_run run;
    struct taker t;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_small);
    begin_taker(&e, &t);
    e.image->alloc->fresh = (ALLOC_PAGES_A_TURN + 500ull) * 256;
    assert_int_equal(refcounts_reach(e.image->refcounts, e.image->alloc->fresh), 0);
    assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_int_equal(e.image->alloc->unknown_page, ALLOC_PAGES_A_TURN);
    assert_int_equal(take(&e, &t, 1, &run), 0);
    assert_int_equal(e.image->alloc->unknown_page, ALLOC_PAGES_A_TURN + 500);
    // A file may be longer than its table can tell.
    e.image->alloc->fresh = e.image->refcounts->table_size * 256 + 7;
    e.image->alloc->unknown_page = e.image->refcounts->table_size;
    assert_int_equal(take(&e, &t, 1, &run), 0);
    engine_free(&e);
}

// A block at no place for one: the image is corrupt.
static void a_block_that_cannot_be_there(void **state)
{
    static const uint64_t offsets[] = {3 * CLUSTER + 512, HEADER_OFFSET_LIMIT};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct alloc_run run;
        struct taker t;
        struct engine e;

        engine_begin(&e, &engine_large);
        e.image->refcounts->table[0] = offsets[i];
        t = (struct taker){0};
        op_init(&t.op, e.image, e.image->runq, &taker_machine);
        assert_int_equal(alloc_clusters(&t.op, 1, true, &run), -EIO);
        assert_true(engine_said(&e, "a refcount block cannot be at offset"));
        engine_run(&e);
        engine_free(&e);
    }
}

static void a_device_whose_size_cannot_be_told(void **state)
{
    struct engine e;

    (void)state;
    begin_device(&e, 8);
    e.disk->size_error = -EIO;
    assert_int_equal(engine_write(&e, 0, 512, 1), -EIO);
    e.disk->size_error = 0;
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    engine_end(&e);
}

// Refcounts say that metadata is free: it is not overwritten, and the image is corrupt. For a
// table, data, and a cluster that zeros are to have.
static void metadata_that_counts_as_free(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct engine e;

        begin_device(&e, 12);
        if (i > 0)
            assert_int_equal(engine_write(&e, 0, 512, 1), 0);
        else
            assert_int_equal(engine_do(&e, OP_DISCARD, 0, 0, 512), 0); // metadata is known
        struct taker t;
        begin_taker(&e, &t);
        assert_int_equal(e.image->header.l1_offset % CLUSTER, 0);
        refcounts_set(e.image->refcounts, e.image->header.l1_offset / CLUSTER, 0);
        e.image->alloc->search = 0;
        alloc_freed(e.image->alloc);
        if (i == 0) // only the free one is there
            e.image->alloc->fresh = e.image->header.l1_offset / CLUSTER + 1;
        int result = i < 2 ? engine_write(&e, 2 * CLUSTER, 512, 1)
                           : engine_do(&e, OP_WRITE_ZEROES, OP_NO_HOLE, 2 * CLUSTER, CLUSTER);
        assert_int_equal(result, -EIO);
        assert_true(engine_said(&e, "would have overwritten"));
        engine_free(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(space_is_reserved_in_steps),
        cmocka_unit_test(a_full_host_is_told_once),
        cmocka_unit_test(a_host_that_cannot_reserve),
        cmocka_unit_test(who_knows_that_it_cannot_says_so),
        cmocka_unit_test(free_clusters_are_used_again),
        cmocka_unit_test(the_header_is_never_free),
        cmocka_unit_test(without_reuse_all_is_fresh),
        cmocka_unit_test(a_leak_in_fresh_space_is_passed_over),
        cmocka_unit_test(a_row_may_span_blocks),
        cmocka_unit_test(refcounts_that_cannot_be_read),
        cmocka_unit_test(a_device_ends),
        cmocka_unit_test(who_finds_no_space_waits_for_what_becomes_free),
        cmocka_unit_test(a_reader_is_waited_for),
        cmocka_unit_test(the_format_ends),
        cmocka_unit_test(many_pages_are_learned_in_turns),
        cmocka_unit_test(a_block_that_cannot_be_there),
        cmocka_unit_test(a_device_whose_size_cannot_be_told),
        cmocka_unit_test(metadata_that_counts_as_free),
    };

    return cmocka_run_group_tests_name("alloc", tests, NULL, NULL);
}
