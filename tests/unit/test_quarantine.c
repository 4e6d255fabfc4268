// SPDX-License-Identifier: Apache-2.0
// test_quarantine.c: a cluster that was given up is not used again before a sync has made that
// durable, and its grace period is over.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/loan.h"
#include "qcow2/format/format.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"
#include "tests/unit/engine.h"

#define CLUSTER 65536u

// An image in which four guest clusters are mapped, and everything is durable. Returns the host
// offset of the first.
static uint64_t begin(struct engine *e)
{
    engine_begin(e, &engine_large);
    assert_int_equal(engine_write(e, 0, 4 * CLUSTER, 1), 0);
    assert_int_equal(engine_flush(e), 0);
    engine_watch(e);
    return engine_disk_entry(e, 0) & FORMAT_L2_OFFSET_MASK;
}

// Clusters that wait.
static size_t waiting(const struct engine *e)
{
    return e->image->quarantine->count;
}

static void discard(struct engine *e, uint64_t cluster, uint64_t count)
{
    assert_int_equal(engine_do(e, OP_DISCARD, 0, cluster * CLUSTER, count * CLUSTER), 0);
}

// Flushes, with reads held back.
static void flush_under_readers(struct engine *e)
{
    struct request flush;

    engine_start(e, &flush, OP_FLUSH, 0, 0, 0);
    engine_hold(e, "read-data");
    assert_int_equal(flush.done, 1);
    assert_int_equal(flush.op.result, 0);
}

static void a_sync_comes_first(void **state)
{
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    discard(&e, 0, 1);
    assert_int_equal(engine_refcount(&e, host), 1);
    assert_int_equal(engine_write(&e, 8 * CLUSTER, 512, 2), 0);
    assert_int_not_equal(engine_entry(&e, 8) & FORMAT_L2_OFFSET_MASK, host);
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(engine_refcount(&e, host), 0);
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 2), 0);
    assert_int_equal(engine_entry(&e, 9) & FORMAT_L2_OFFSET_MASK, host);
    engine_end(&e);
}

static void a_sync_that_failed_does_not_count(void **state)
{
    struct request flush;
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    discard(&e, 0, 1);
    engine_start(&e, &flush, OP_FLUSH, 0, 0, 0);
    size_t index = engine_reach(&e, "l2");
    // References that are given up meanwhile wait behind it.
    struct request later;
    engine_start(&e, &later, OP_DISCARD, 0, 2 * CLUSTER, CLUSTER);
    scripted_file_end(e.disk, index, -ENOSPC);
    engine_run(&e);
    assert_int_equal(flush.op.result, -ENOSPC);
    assert_int_equal(waiting(&e), 2);
    assert_int_equal(TAILQ_FIRST(&e.image->quarantine->pending)->first, host / CLUSTER);
    assert_int_equal(engine_refcount(&e, host), 1);
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(engine_refcount(&e, host), 0);
    assert_int_equal(waiting(&e), 0);
    engine_end(&e);
}

static void a_reader_is_in_the_way(void **state)
{
    struct request read;
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    engine_start(&e, &read, OP_READ, 0, 0, 4096);
    engine_hold(&e, "read-data");
    struct request gone;
    engine_start(&e, &gone, OP_DISCARD, 0, 0, CLUSTER);
    flush_under_readers(&e);
    assert_int_equal(gone.done, 1);
    assert_int_equal(engine_refcount(&e, host), 1);
    assert_int_equal(e.image->quarantine->releaser_state, RELEASER_WAITING);
    // A later read sees zeros, and delays nothing.
    struct request other;
    engine_start(&e, &other, OP_READ, 0, 2 * CLUSTER, 4096);
    engine_hold(&e, "read-data");
    scripted_file_end(e.disk, 0, 0);
    engine_hold(&e, "read-data");
    assert_int_equal(read.done, 1);
    assert_int_equal(other.done, 0);
    assert_int_equal(engine_refcount(&e, host), 0);
    engine_run(&e);
    engine_end(&e);
}

// Starts a read of the first 4096 bytes that may get them as a loan.
static void start_lending(struct engine *e, struct request *read, void *bytes,
                          struct extent extents[4])
{
    e->disk->makes_loans = true;
    engine_start(e, read, OP_READ, 0, 0, 4096);
    engine_run(e);
    assert_null(read->op.loan.file);
    struct op loan = {.kind = OP_READ,
                      .flags = OP_LOAN,
                      .length = 4096,
                      .buf = bytes,
                      .done = read->op.done,
                      .extents = extents,
                      .max_extents = 4};
    *read = (struct request){.op = loan};
    op_start(e->image, &read->op);
}

// A reply that points into the file: its owner is asked to settle it.
static void a_loan_is_in_the_way(void **state)
{
    struct extent extents[4];
    struct request read;
    struct engine e;
    char bytes[4096];

    (void)state;
    uint64_t host = begin(&e);
    start_lending(&e, &read, bytes, extents);
    engine_run(&e);
    assert_int_equal(read.done, 1);
    assert_ptr_equal(read.op.loan.file, &e.disk->file);
    assert_ptr_equal(extents[0].data, e.disk->bytes + host);

    discard(&e, 0, 1);
    assert_false(quarantine_held(e.image));
    assert_int_equal(engine_flush(&e), 0);
    assert_true(quarantine_held(e.image));
    assert_int_equal(e.disk->settles, 1);
    assert_int_equal(engine_refcount(&e, host), 1);
    assert_true(loan_settle(&read.op.loan, extents, read.op.extent_count, bytes));
    assert_int_equal(bytes[4095], 1);
    assert_int_equal(e.disk->loans, 0);
    assert_false(quarantine_held(e.image));
    engine_run(&e);
    assert_int_equal(engine_refcount(&e, host), 0);
    engine_end(&e);
}

// An image that is closed as it is frees what waits; only a leak detector sees it.
static void clusters_wait_when_the_image_is_closed(void **state)
{
    struct extent extents[4];
    struct request read;
    struct engine e;
    char bytes[4096];

    (void)state;
    begin(&e);
    start_lending(&e, &read, bytes, extents);
    engine_run(&e);
    discard(&e, 0, 1);
    assert_int_equal(engine_flush(&e), 0);
    discard(&e, 2, 1);
    assert_false(TAILQ_EMPTY(&e.image->quarantine->durable));
    assert_false(TAILQ_EMPTY(&e.image->quarantine->pending));
    loan_return(&read.op.loan, extents, read.op.extent_count);
    engine_free(&e);
}

// The cluster is given up while the read is on its way to it: the loan delays the release.
static void a_loan_is_as_old_as_its_plan(void **state)
{
    struct extent extents[4];
    struct request read, gone;
    struct engine e;
    char bytes[4096];

    (void)state;
    uint64_t host = begin(&e);
    start_lending(&e, &read, bytes, extents);
    engine_hold(&e, "read-data");
    engine_start(&e, &gone, OP_DISCARD, 0, 0, CLUSTER);
    flush_under_readers(&e);
    assert_int_equal(gone.done, 1);
    assert_int_equal(read.done, 0);
    scripted_file_end(e.disk, 0, 0);
    engine_run(&e);
    assert_ptr_equal(read.op.loan.file, &e.disk->file);
    assert_int_equal(e.disk->settles, 1);
    assert_int_equal(engine_refcount(&e, host), 1);
    loan_return(&read.op.loan, extents, read.op.extent_count);
    engine_run(&e);
    assert_int_equal(engine_refcount(&e, host), 0);
    engine_end(&e);
}

// Neighbours that are given up one after the other become one extent, with the younger stamp.
static void neighbours_wait_together(void **state)
{
    struct request read;
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    discard(&e, 0, 1);
    // It reads from the second one, which is given up while it does.
    engine_start(&e, &read, OP_READ, 0, CLUSTER, 512);
    engine_hold(&e, "read-data");
    struct request gone;
    engine_start(&e, &gone, OP_DISCARD, 0, CLUSTER, CLUSTER);
    flush_under_readers(&e);
    assert_int_equal(waiting(&e), 1);
    assert_int_equal(engine_refcount(&e, host), 1);
    assert_int_equal(engine_refcount(&e, host + CLUSTER), 1);
    engine_run(&e);
    assert_int_equal(engine_refcount(&e, host), 0);
    assert_int_equal(engine_refcount(&e, host + CLUSTER), 0);
    engine_end(&e);
}

// A cluster with other references keeps these; nothing is punched.
static void a_reference_less(void **state)
{
    struct engine e;

    (void)state;
    uint64_t host = begin(&e);
    assert_int_equal(refcounts_set(e.image->refcounts, host / CLUSTER, 3), 0);
    quarantine_add(e.image, host / CLUSTER, 1);
    // A cluster whose refcount is 0 keeps it.
    assert_int_equal(refcounts_set(e.image->refcounts, host / CLUSTER + 2, 0), 0);
    quarantine_add(e.image, host / CLUSTER + 2, 1);
    assert_int_equal(waiting(&e), 2);
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(waiting(&e), 0);
    assert_int_equal(engine_refcount(&e, host), 2);
    assert_int_equal(engine_refcount(&e, host + 2 * CLUSTER), 0);
    assert_int_equal(e.image->punch->count, 0);
    engine_free(&e);
}

// A cluster of the fresh space was named by a damaged entry. It may be handed out before what is
// given up now is released, and stays with its new owner.
static void fresh_space_is_not_given_up(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t fresh = e.image->alloc->fresh;
    quarantine_add(e.image, fresh + 5, 7);
    assert_int_equal(waiting(&e), 0);
    // The part of a damaged entry that was handed out is given up.
    assert_int_equal(refcounts_set(e.image->refcounts, fresh - 1, 2), 0);
    quarantine_add(e.image, fresh - 1, 3);
    assert_int_equal(waiting(&e), 1);
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(refcounts_set(e.image->refcounts, fresh + i, 1), 0);
    e.image->alloc->fresh += 8;
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(waiting(&e), 0);
    assert_int_equal(refcounts_get(e.image->refcounts, fresh - 1), 1);
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(refcounts_get(e.image->refcounts, fresh + i), 1);
    engine_free(&e);
}

// A releaser that loads refcounts is at work: an op without space waits for it.
static void a_releaser_that_loads_is_running(void **state)
{
    struct request gone;
    struct engine e;
    struct error err;

    (void)state;
    engine_begin(&e, &engine_small);
    assert_int_equal(engine_write(&e, 0, 400 * 512, 1), 0);
    assert_int_equal(image_finish(e.image, &err), 0);
    engine_crash(&e, &(struct image_options){.format = IMAGE_FORMAT_QCOW2});
    engine_start(&e, &gone, OP_DISCARD, OP_FUA, 0, 400 * 512);
    engine_hold(&e, "read-block");
    assert_true(engine_in_flight(&e, "read-block"));
    assert_int_equal(e.image->quarantine->releaser_state, RELEASER_RUNNING);
    engine_run(&e);
    engine_end(&e);
}

// Refcounts that cannot be read: the clusters leak, the log tells it, and others are released.
static void what_cannot_be_counted_leaks(void **state)
{
    struct engine e;
    struct error err;

    (void)state;
    engine_begin(&e, &engine_small);
    // More than one page of 256 clusters.
    assert_int_equal(engine_write(&e, 0, 400 * 512, 1), 0);
    assert_int_equal(image_finish(e.image, &err), 0);
    engine_crash(&e, &(struct image_options){.format = IMAGE_FORMAT_QCOW2});
    e.disk->fail_kind = FILE_READ;
    e.disk->fail_offset = e.image->refcounts->table[1];
    e.disk->fail_length = 512;
    e.disk->fail_error = -EIO;
    assert_int_equal(engine_do(&e, OP_DISCARD, OP_FUA, 0, 400 * 512), 0);
    engine_run(&e);
    assert_true(engine_said(&e, "freed clusters leak until the next check: error 5"));
    assert_int_equal(waiting(&e), 0);
    assert_int_equal(engine_refcount(&e, 100 * 512), 0);
    engine_free(&e);
}

// A guest that discards its whole disk does not delay others: only so many clusters are released in
// a turn.
static void much_is_released_in_turns(void **state)
{
    const uint64_t clusters = 2 * QUARANTINE_RELEASE_A_TURN + 100;
    struct engine e;
    uint64_t released = 0;

    (void)state;
    begin(&e);
    uint64_t first = e.image->alloc->fresh;
    e.image->alloc->fresh += clusters;
    assert_int_equal(refcounts_add(e.image->refcounts, first, clusters, 1), 0);
    quarantine_add(e.image, first, clusters);
    struct request flush;
    engine_start(&e, &flush, OP_FLUSH, 0, 0, 0);
    while (scripted_file_turn(e.disk) || e.disk->queued > 0) {
        const struct quarantined *q = TAILQ_FIRST(&e.image->quarantine->durable);
        uint64_t now = q ? q->first - first : flush.done ? clusters : 0;

        assert_true(now - released <= QUARANTINE_RELEASE_A_TURN);
        released = now;
        if (runq_empty(&e.disk->runq) && e.disk->queued > 0)
            scripted_file_end(e.disk, 0, 0);
    }
    assert_int_equal(waiting(&e), 0);
    assert_true(refcounts_all_free(e.image->refcounts, first, clusters));
    engine_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sync_comes_first),
        cmocka_unit_test(a_sync_that_failed_does_not_count),
        cmocka_unit_test(a_reader_is_in_the_way),
        cmocka_unit_test(a_loan_is_in_the_way),
        cmocka_unit_test(clusters_wait_when_the_image_is_closed),
        cmocka_unit_test(a_loan_is_as_old_as_its_plan),
        cmocka_unit_test(neighbours_wait_together),
        cmocka_unit_test(a_reference_less),
        cmocka_unit_test(fresh_space_is_not_given_up),
        cmocka_unit_test(a_releaser_that_loads_is_running),
        cmocka_unit_test(what_cannot_be_counted_leaks),
        cmocka_unit_test(much_is_released_in_turns),
    };

    return cmocka_run_group_tests_name("quarantine", tests, NULL, NULL);
}
