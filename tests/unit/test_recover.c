// SPDX-License-Identifier: Apache-2.0
// test_recover.c: an image that was not closed cleanly: counted while it is served, cut behind its
// last reference, and left alone where it is damaged. Bitmaps end with the first change.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/durable/recover.h"
#include "qcow2/format/format.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/refcount.h"
#include "tests/unit/engine.h"

#define CLUSTER 65536u

static const struct image_options options = {.format = IMAGE_FORMAT_QCOW2};

// The dirty bit is on disk; guest clusters 0 to 3 are mapped.
static void begin(struct engine *e)
{
    engine_begin_with(e, &engine_large, &options);
    assert_int_equal(engine_write(e, 0, 4 * CLUSTER, 1), 0);
    assert_int_equal(engine_flush(e), 0);
    assert_int_equal(e->image->dirty_bit, DIRTY_BIT_SET);
}

static uint64_t table_of(const struct engine *e)
{
    return format_get64(e->disk->bytes + e->image->header.l1_offset) & FORMAT_L1_OFFSET_MASK;
}

static void all_is_counted_and_the_rest_is_cut_off(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    // Written, and not linked when the power went.
    uint64_t host = engine_disk_entry(&e, 3) & FORMAT_L2_OFFSET_MASK;
    memset(e.disk->bytes + host + CLUSTER, 0x55, 3 * CLUSTER);
    e.disk->size = host + 4 * CLUSTER;
    engine_crash(&e, &options);
    assert_true(recover_complete(e.image));
    assert_true(engine_said(&e, "recovery: done, 0 faults found"));
    assert_int_equal(e.disk->size, host + CLUSTER);
    assert_int_equal(e.image->alloc->fresh, host / CLUSTER + 1);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(engine_refcount(&e, host - i * CLUSTER), 1);
    assert_int_equal(engine_refcount(&e, table_of(&e)), 1);
    // The cut is durable before an entry refers to the space behind it.
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 2), 0);
    engine_watch(&e);
    assert_int_equal(engine_flush(&e), 0);
    assert_string_equal(e.order, "barrier. l2. barrier.");
    engine_end(&e);
}

// A file that lost its growth gets it back before the image is closed.
static void a_file_that_is_too_short_gets_its_length(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t host = engine_disk_entry(&e, 3) & FORMAT_L2_OFFSET_MASK;
    e.disk->size = host + 512;
    engine_crash(&e, &options);
    assert_int_equal(e.disk->size, host + CLUSTER);
    engine_end(&e);
}

// Reads and writes in place go on; an op that needs a new cluster waits, and is woken once.
static void it_is_served_meanwhile(void **state)
{
    struct request read, in_place, new[2];
    uint8_t seen[512];
    struct engine e;

    (void)state;
    begin(&e);
    engine_crash_only(&e, &options);
    assert_false(recover_done(e.image));
    engine_start(&e, &new[0], OP_WRITE, 0, 9 * CLUSTER, 512);
    engine_start(&e, &new[1], OP_DISCARD, 0, 0, CLUSTER);
    engine_start(&e, &in_place, OP_WRITE, 0, CLUSTER, 512);
    engine_start(&e, &read, OP_READ, 0, 2 * CLUSTER, 512);
    // A buffer of its own: what is read is undefined at first, and would be so for the writes.
    read.op.buf = seen;
    // Recovery asks for the holes of the file before it reads tables.
    engine_hold(&e, "extents");
    assert_true(e.image->recovery->running);
    assert_int_equal(read.done, 1);
    assert_int_equal(in_place.done, 1);
    assert_int_equal(new[0].done + new[1].done, 0);
    assert_string_equal(new[0].op.wait.event, "recovery to count the clusters");
    engine_run(&e);
    assert_int_equal(new[0].op.result + new[1].op.result, 0);
    assert_int_equal(new[0].done + new[1].done, 2);
    engine_end(&e);
}

// An invalid entry may have been a reference to any cluster: nothing is cut, no free cluster is
// taken, and the image is not marked clean.
static void a_damaged_entry_keeps_all_as_it_is(void **state)
{
    struct engine e;
    struct error err;

    (void)state;
    begin(&e);
    format_put64(e.disk->bytes + table_of(&e) + 8 * 2, (3 * CLUSTER + 512) | FORMAT_COPIED);
    e.disk->size += 5 * CLUSTER;
    uint64_t size = e.disk->size;
    engine_crash(&e, &options);
    assert_true(recover_done(e.image));
    assert_false(recover_complete(e.image));
    assert_true(engine_said(&e, "an invalid table entry (guest offset 131072"));
    assert_int_equal(e.disk->size, size);
    assert_false(e.image->alloc->reuse);
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 2), 0);
    assert_true((engine_entry(&e, 9) & FORMAT_L2_OFFSET_MASK) >= size);
    // A discarded cluster is not given to other guest clusters, or to the host.
    assert_int_equal(engine_do(&e, OP_DISCARD, OP_FUA, 0, CLUSTER), 0);
    assert_false(image_tick(e.image));
    assert_int_equal(image_finish(e.image, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "run 'lazycow check -r all'"));
    assert_true(format_get64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE) & 1);
    engine_free(&e);
}

// If tables cannot be read, no new cluster can be written; existing ones can.
static void tables_that_cannot_be_read(void **state)
{
    struct engine e;
    struct error err;

    (void)state;
    begin(&e);
    engine_crash_only(&e, &options);
    scripted_file_end(e.disk, engine_reach(&e, "read-l1"), -EIO);
    engine_run(&e);
    assert_true(engine_said(&e, "recovery failed (Input/output error): no new clusters"));
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 2), -EIO);
    assert_int_equal(engine_write(&e, CLUSTER, 512, 2), 0);
    assert_int_equal(engine_flush(&e), 0);
    engine_expect(&e, CLUSTER, 512, 2);
    assert_int_equal(image_finish(e.image, &err), -EUCLEAN);
    engine_free(&e);
}

static void the_cut_may_fail(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    e.disk->size += CLUSTER;
    engine_crash_only(&e, &options);
    scripted_file_end(e.disk, engine_reach(&e, "cut"), -EIO);
    engine_run(&e);
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 2), -EIO);
    engine_free(&e);
}

// Two references to a cluster that claims to have one: counted, reported, and not written in place.
static void shared_clusters_that_say_they_are_not(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t raw = engine_disk_entry(&e, 0);
    format_put64(e.disk->bytes + table_of(&e) + 8 * 20, raw);
    engine_crash(&e, &options);
    assert_true(engine_said(&e, "two references to a cluster that says it has one"));
    assert_int_equal(engine_refcount(&e, raw & FORMAT_L2_OFFSET_MASK), 2);
    assert_int_equal(engine_write(&e, 0, 512, 7), 0);
    engine_expect(&e, 20 * CLUSTER, 512, 1);
    engine_free(&e);
}

static void snapshots_count(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    engine_snapshot(&e);
    uint64_t host = engine_disk_entry(&e, 0) & FORMAT_L2_OFFSET_MASK;
    assert_int_equal(engine_write(&e, 0, 512, 7), 0);
    assert_int_equal(engine_flush(&e), 0);
    uint64_t old_table = format_get64(e.disk->bytes + e.image->snapshots.snapshots[0].l1_offset);
    engine_crash(&e, &options);
    assert_int_equal(engine_refcount(&e, host), 1);
    assert_int_equal(engine_refcount(&e, host + CLUSTER), 2);
    assert_int_equal(engine_refcount(&e, old_table), 1);
    assert_int_equal(engine_refcount(&e, e.image->header.snapshot_offset), 1);
    engine_end(&e);
}

// The old refcount structures stay only where no other structure is.
static void refcounts_that_lie_over_data_are_moved(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t data = engine_disk_entry(&e, 1) & FORMAT_L2_OFFSET_MASK;
    uint64_t table = e.image->header.refcount_table_offset;
    // The first block is said to be where guest cluster 1 is; the second far beyond the end.
    format_put64(e.disk->bytes + table, data);
    format_put64(e.disk->bytes + table + 8, 1ull << 45);
    engine_crash(&e, &options);
    assert_int_equal(e.image->refcounts->table[0], 0);
    assert_int_equal(e.image->refcounts->table[1], 0);
    assert_int_equal(engine_write(&e, 9 * CLUSTER, 512, 2), 0);
    engine_expect(&e, CLUSTER, CLUSTER, 1);
    engine_end(&e);

    begin(&e);
    format_put64(e.disk->bytes + FORMAT_HEADER_REFCOUNT_TABLE_OFFSET,
                 engine_disk_entry(&e, 2) & FORMAT_L2_OFFSET_MASK);
    engine_crash(&e, &options);
    assert_true(engine_said(&e, "the refcount table lies where something else does"));
    assert_int_equal(e.image->refcounts->place, REFCOUNT_TABLE_FOREIGN);
    engine_expect(&e, 2 * CLUSTER, CLUSTER, 1);
    engine_end(&e);
}

// Faults beyond the limit of messages are counted.
static void many_faults_are_told_briefly(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    for (unsigned i = 0; i < RECOVER_FAULTS_TOLD + 5; i++)
        format_put64(e.disk->bytes + table_of(&e) + 8 * (50 + i), 40 * CLUSTER + 512);
    size_t lines = e.disk->line_count;
    engine_crash(&e, &options);
    assert_int_equal(e.image->recovery->faults, RECOVER_FAULTS_TOLD + 5);
    assert_int_equal(e.disk->line_count, lines + 2 + RECOVER_FAULTS_TOLD);
    engine_free(&e);
}

// More references than the width of refcounts can count.
static void too_many_references(void **state)
{
    struct create_options create = engine_large;
    struct engine e;

    (void)state;
    create.refcount_order = 1;
    engine_begin_with(&e, &create, &options);
    assert_int_equal(engine_write(&e, 0, CLUSTER, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    uint64_t raw = engine_disk_entry(&e, 0) & ~FORMAT_COPIED;
    for (unsigned i = 0; i < 4; i++)
        format_put64(e.disk->bytes + table_of(&e) + 8 * (i + 1), raw);
    engine_crash(&e, &options);
    assert_true(engine_said(&e, "more references than can be counted"));
    assert_false(recover_complete(e.image));
    engine_free(&e);
}

// A long pass reports its progress.
static void progress_is_told(void **state)
{
    struct create_options create = engine_small;
    struct engine e;

    (void)state;
    create.size = 32u << 20;
    create.lazy_refcounts = true;
    engine_begin_with(&e, &create, &options);
    for (uint64_t at = 0; at < 32u << 20; at += 32768)
        assert_int_equal(engine_write(&e, at, 512, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    engine_crash(&e, &options);
    assert_true(engine_said(&e, "recovery: 10 % of the tables counted"));
    assert_true(recover_complete(e.image));
    engine_free(&e);
}

// Flags that mean nothing hide nothing: the image can be clean again.
static void flags_that_mean_nothing(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t sectors = FORMAT_COMPRESSED | (engine_disk_entry(&e, 3) & FORMAT_L2_OFFSET_MASK);
    format_put64(e.disk->bytes + table_of(&e) + 8 * 3, sectors | FORMAT_COPIED);
    engine_crash(&e, &options);
    assert_int_equal(e.image->recovery->faults, 1);
    assert_int_equal(e.image->recovery->hidden, 0);
    assert_true(recover_complete(e.image));
    engine_free(&e);

    engine_begin_with(&e, &engine_small, &options);
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    uint64_t bits = format_get64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE);
    format_put64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE, bits | HEADER_INCOMPATIBLE_DIRTY);
    format_put64(e.disk->bytes + e.image->header.l1_offset + 8, FORMAT_COPIED);
    engine_crash(&e, &options);
    assert_int_equal(e.image->recovery->faults, 1);
    assert_true(recover_complete(e.image));
    engine_free(&e);
}

// The flag of a cluster in a table that a snapshot shares.
static void a_shared_cluster_that_says_it_is_not(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    engine_snapshot(&e);
    uint64_t bits = format_get64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE);
    format_put64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE, bits | HEADER_INCOMPATIBLE_DIRTY);
    e.disk->bytes[table_of(&e)] |= 0x80;
    engine_crash(&e, &options);
    assert_true(engine_said(&e, "a cluster that snapshots share says that it is not shared"));
    engine_free(&e);
}

// A reference farther out than any refcount table reaches.
static void a_reference_too_far_out(void **state)
{
    struct create_options create = engine_small;
    struct engine e;

    (void)state;
    create.refcount_order = 6;
    engine_begin_with(&e, &create, &options);
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    uint64_t bits = format_get64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE);
    format_put64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE, bits | HEADER_INCOMPATIBLE_DIRTY);
    // 1 Mi blocks of 64 clusters of 512 bytes are 32 GiB.
    format_put64(e.disk->bytes + table_of(&e) + 8 * 3, 40ull << 30);
    engine_crash(&e, &options);
    assert_true(engine_said(&e, "a cluster lies farther out than can be counted"));
    assert_int_equal(e.image->recovery->hidden, 1);
    engine_free(&e);
}

// The size of the file is asked for again after the walk.
static void a_size_that_cannot_be_told(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    engine_crash_only(&e, &options);
    engine_hold(&e, "read-l2");
    e.disk->size_error = -EIO;
    engine_run(&e);
    assert_true(engine_said(&e, "recovery failed (Input/output error)"));
    e.disk->size_error = 0;
    engine_free(&e);
}

// ---- Bitmaps ------------------------------------------------------------------------------------

static void begin_with_bitmap(struct engine *e)
{
    struct error err;

    begin(e);
    assert_int_equal(image_finish(e->image, &err), 0);
    engine_add_bitmap(e);
    engine_crash(e, &options);
    assert_true(engine_said(e, "has 1 persistent bitmaps ('b')"));
    assert_int_equal(engine_faults(e), 0);
    engine_watch(e);
}

// The dirty bit with the autoclear bit, the extension, then a count of all clusters; each behind a
// barrier. Nothing changes before the bitmaps are gone.
static void bitmaps_leave_the_header_before_their_clusters_are_free(void **state)
{
    struct engine e;

    (void)state;
    begin_with_bitmap(&e);
    uint64_t size = e.disk->size;
    engine_expect(&e, 0, CLUSTER, 1);
    engine_watch(&e);
    assert_int_equal(engine_write(&e, 0, 512, 5), 0);
    // A write in place need not wait for the count.
    assert_string_equal(e.order,
                        "header. barrier. header. barrier. data extents.. read-l1. extents. "
                        "read-l2. cut.");
    assert_false(e.image->has_bitmaps);
    assert_true(engine_said(&e, "its bitmaps are gone"));
    assert_int_equal(e.disk->size, size - 2 * CLUSTER);
    engine_end(&e);
}

// Nothing of it happened: the write fails, and the bitmap is there still.
static void bitmaps_that_cannot_be_dropped(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    begin_with_bitmap(&e);
    engine_start(&e, &write, OP_WRITE, 0, 0, 512);
    scripted_file_end(e.disk, engine_reach(&e, "header"), -ENOSPC);
    engine_run(&e);
    assert_int_equal(write.op.result, -ENOSPC);
    assert_true(e.image->has_bitmaps);
    assert_int_equal(engine_write(&e, 0, 512, 5), 0);
    assert_false(e.image->has_bitmaps);
    engine_end(&e);
}

// Of an image that was not closed cleanly they are dropped at once.
static void bitmaps_of_a_crashed_image_go_first(void **state)
{
    struct engine e;

    (void)state;
    begin_with_bitmap(&e);
    uint64_t bits = format_get64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE);
    format_put64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE, bits | HEADER_INCOMPATIBLE_DIRTY);
    engine_crash_only(&e, &options);
    assert_int_equal(engine_reach(&e, "header"), 0);
    assert_int_equal(engine_count(&e, "read-l1"), 0);
    engine_run(&e);
    assert_false(e.image->has_bitmaps);
    assert_true(recover_complete(e.image));
    engine_end(&e);

    // The header cannot be written: nothing is counted, nothing new is taken.
    begin_with_bitmap(&e);
    format_put64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE, bits | HEADER_INCOMPATIBLE_DIRTY);
    engine_crash_only(&e, &options);
    scripted_file_end(e.disk, engine_reach(&e, "header"), -ENOSPC);
    engine_run(&e);
    assert_false(recover_done(e.image));
    assert_true(engine_said(&e, "recovery failed"));
    engine_free(&e);
}

// Until they are claimed, the refcount table and its blocks may lie where data is, and a write in
// place there is no damage. Afterwards those that are ours are known as metadata.
static void old_refcounts_stand_in_no_way(void **state)
{
    struct request in_place;
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t data = engine_disk_entry(&e, 1) & FORMAT_L2_OFFSET_MASK;
    uint64_t table = e.image->header.refcount_table_offset;
    // Two blocks in one place, which is that of guest cluster 1.
    uint64_t block = format_get64(e.disk->bytes + table);
    format_put64(e.disk->bytes + table + 8, data);
    format_put64(e.disk->bytes + table + 16, data);
    engine_crash_only(&e, &options);
    engine_start(&e, &in_place, OP_WRITE, 0, CLUSTER, 512);
    engine_hold(&e, "extents");
    assert_true(e.image->recovery->running);
    assert_int_equal(in_place.done, 1);
    assert_int_equal(in_place.op.result, 0);
    assert_null(guard_hit(e.image, table, 1));
    assert_null(guard_hit(e.image, block, 1));
    engine_run(&e);
    assert_non_null(guard_hit(e.image, table, 1));
    assert_non_null(guard_hit(e.image, block, 1));
    assert_null(guard_hit(e.image, data, 1));
    assert_int_equal(engine_write(&e, CLUSTER, 512, 3), 0);
    engine_end(&e);
}

// The same for a table that is not ours.
static void a_write_where_the_refcount_table_is_said_to_be(void **state)
{
    struct request in_place;
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t data = engine_disk_entry(&e, 1) & FORMAT_L2_OFFSET_MASK;
    format_put64(e.disk->bytes + FORMAT_HEADER_REFCOUNT_TABLE_OFFSET, data);
    engine_crash_only(&e, &options);
    engine_start(&e, &in_place, OP_WRITE, 0, CLUSTER, 512);
    engine_run(&e);
    assert_int_equal(in_place.op.result, 0);
    assert_true(engine_said(&e, "the refcount table lies where something else does"));
    assert_int_equal(engine_write(&e, CLUSTER, 512, 3), 0);
    engine_expect(&e, CLUSTER, 512, 3);
    engine_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_is_counted_and_the_rest_is_cut_off),
        cmocka_unit_test(a_file_that_is_too_short_gets_its_length),
        cmocka_unit_test(it_is_served_meanwhile),
        cmocka_unit_test(a_damaged_entry_keeps_all_as_it_is),
        cmocka_unit_test(tables_that_cannot_be_read),
        cmocka_unit_test(the_cut_may_fail),
        cmocka_unit_test(shared_clusters_that_say_they_are_not),
        cmocka_unit_test(snapshots_count),
        cmocka_unit_test(refcounts_that_lie_over_data_are_moved),
        cmocka_unit_test(many_faults_are_told_briefly),
        cmocka_unit_test(too_many_references),
        cmocka_unit_test(progress_is_told),
        cmocka_unit_test(bitmaps_leave_the_header_before_their_clusters_are_free),
        cmocka_unit_test(bitmaps_that_cannot_be_dropped),
        cmocka_unit_test(bitmaps_of_a_crashed_image_go_first),
        cmocka_unit_test(flags_that_mean_nothing),
        cmocka_unit_test(a_shared_cluster_that_says_it_is_not),
        cmocka_unit_test(a_reference_too_far_out),
        cmocka_unit_test(a_size_that_cannot_be_told),
        cmocka_unit_test(old_refcounts_stand_in_no_way),
        cmocka_unit_test(a_write_where_the_refcount_table_is_said_to_be),
    };

    return cmocka_run_group_tests_name("recover", tests, NULL, NULL);
}
