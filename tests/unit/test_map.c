// SPDX-License-Identifier: Apache-2.0
// test_map.c: looking guest ranges up: runs, flags that are not trusted, damaged entries; and L2
// tables that an image makes its own before it writes them.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/format/format.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/mapping/map.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/quarantine.h"
#include "tests/unit/engine.h"

#define CLUSTER 65536u

static void no_turn(struct op *op)
{
    (void)op;
}

static const char *const state_names[] = {"only"};
static const struct op_machine machine = OP_MACHINE("looking", no_turn, state_names);

static int look_up(struct engine *e, uint64_t guest, uint64_t length, struct mapping *m)
{
    struct op op;
    int result;

    op_init(&op, e->image, e->image->runq, &machine);
    while ((result = map_lookup(&op, e->image, guest, length, m)) == OP_PARKED)
        engine_run(e);
    return result;
}

// Three clusters in a row; one elsewhere; a zero cluster; a zero cluster with a host cluster;
// nothing.
static void begin(struct engine *e)
{
    engine_begin(e, &engine_large);
    assert_int_equal(engine_write(e, 0, 3 * CLUSTER, 1), 0);
    assert_int_equal(engine_write(e, 9 * CLUSTER, CLUSTER, 1), 0);
    assert_int_equal(engine_write(e, 3 * CLUSTER, CLUSTER, 2), 0);
    assert_int_equal(engine_do(e, OP_WRITE_ZEROES, OP_NO_HOLE, 4 * CLUSTER, CLUSTER), 0);
    assert_int_equal(engine_flush(e), 0);
    engine_watch(e);
}

// Writes a raw entry of guest cluster 0's table to the disk, and opens the image anew.
static void patch(struct engine *e, uint64_t cluster, uint64_t raw)
{
    struct image_options options = e->image->options;
    struct error err;

    assert_int_equal(image_finish(e->image, &err), 0);
    uint64_t l1 = format_get64(e->disk->bytes + e->image->header.l1_offset);
    format_put64(e->disk->bytes + (l1 & FORMAT_L1_OFFSET_MASK) + 8 * cluster, raw);
    engine_crash(e, &options);
}

// ---- Lookups ------------------------------------------------------------------------------------

static void runs_of_clusters(void **state)
{
    static const struct {
        uint64_t guest, asked, found;
        enum entry_kind kind;
    } rows[] = {
        {0, 64 * CLUSTER, 3 * CLUSTER, ENTRY_DATA},
        {512, 64 * CLUSTER, 3 * CLUSTER - 512, ENTRY_DATA},
        {512, 100, 100, ENTRY_DATA},
        {3 * CLUSTER, 64 * CLUSTER, CLUSTER, ENTRY_DATA},
        {4 * CLUSTER, 64 * CLUSTER, CLUSTER, ENTRY_ZERO_ALLOCATED},
        {5 * CLUSTER, 64 * CLUSTER, 4 * CLUSTER, ENTRY_UNALLOCATED},
        // To the end of the slice.
        {10 * CLUSTER, 1024ull * CLUSTER, 502 * CLUSTER, ENTRY_UNALLOCATED},
    };
    struct engine e;

    (void)state;
    begin(&e);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct mapping m;

        assert_int_equal(look_up(&e, rows[i].guest, rows[i].asked, &m), 0);
        assert_int_equal(m.kind, rows[i].kind);
        assert_int_equal(m.length, rows[i].found);
        assert_int_equal(m.copied, m.host_offset != 0);
        if (m.kind == ENTRY_DATA && rows[i].guest < 3 * CLUSTER)
            assert_int_equal(m.host_offset,
                             (engine_entry(&e, 0) & FORMAT_L2_OFFSET_MASK) + rows[i].guest);
    }
    assert_true(map_in_memory(e.image, 0));
    assert_true(map_in_memory(e.image, 60 * CLUSTER));
    engine_end(&e);
}

// COPIED in an entry that names a cluster of the fresh space is not trusted: a second owner would
// overwrite the cluster.
static void copied_is_not_believed_in_fresh_space(void **state)
{
    struct mapping m;
    struct engine e;

    (void)state;
    begin(&e);
    patch(&e, 7, 0); // so that the end of the file is known
    uint64_t fresh = e.image->alloc->fresh << 16;
    patch(&e, 7, fresh | FORMAT_COPIED);
    patch(&e, 8, (fresh - CLUSTER) | FORMAT_COPIED);
    assert_int_equal(look_up(&e, 7 * CLUSTER, 512, &m), 0);
    assert_int_equal(m.kind, ENTRY_DATA);
    assert_false(m.copied);
    assert_int_equal(look_up(&e, 8 * CLUSTER, 512, &m), 0);
    assert_true(m.copied);
    engine_watch(&e);
    assert_int_equal(engine_write(&e, 7 * CLUSTER, 512, 9), 0);
    assert_int_equal(engine_count(&e, "read-data"), 1); // copied, not written in place
    engine_free(&e);
}

// Nor is COPIED trusted under an L1 entry that tells that the table is shared.
static void copied_is_not_believed_under_a_shared_table(void **state)
{
    struct mapping m;
    struct engine e;

    (void)state;
    begin(&e);
    struct image_options options = e.image->options;
    struct error err;
    assert_int_equal(image_finish(e.image, &err), 0);
    e.disk->bytes[e.image->header.l1_offset] &= 0x7f;
    engine_crash(&e, &options);
    assert_int_equal(look_up(&e, 0, 512, &m), 0);
    assert_false(m.copied);
    engine_free(&e);
}

static void damaged_entries_are_errors(void **state)
{
    struct mapping m;
    struct engine e;

    (void)state;
    begin(&e);
    patch(&e, 2, 512 * 3);
    assert_int_equal(look_up(&e, 0, 3 * CLUSTER, &m), 0);
    assert_int_equal(m.length, 2 * CLUSTER); // a run ends before it
    assert_int_equal(look_up(&e, 2 * CLUSTER, 512, &m), -EIO);
    assert_true(engine_said(&e, "the L2 entry for guest offset 131072 is invalid"));
    assert_int_equal(engine_write(&e, 2 * CLUSTER, 512, 1), -EIO);
    e.image->l1.entries[0] |= 512;
    assert_int_equal(look_up(&e, 0, 512, &m), -EIO);
    assert_true(engine_said(&e, "L1 entry 0 is not aligned"));
    assert_false(map_in_memory(e.image, 0));
    engine_free(&e);
}

// ---- What is given up ---------------------------------------------------------------------------

static void replacing_gives_up_what_is_referred_to_no_more(void **state)
{
    struct slice *slice;
    unsigned index;
    struct engine e;
    struct op op;

    (void)state;
    begin(&e);
    op_init(&op, e.image, e.image->runq, &machine);
    assert_int_equal(map_slice_for_change(&op, 3 * CLUSTER, &slice, &index), 0);
    assert_int_equal(index, 3);
    uint64_t raw = engine_entry(&e, 3), changes = e.image->mapping_changes;
    const struct quarantine *q = e.image->quarantine;

    map_replace(e.image, slice, index, raw); // nothing changes
    assert_int_equal(e.image->mapping_changes, changes);
    assert_int_equal(slice->state, SLICE_CLEAN);
    map_replace(e.image, slice, index, raw | FORMAT_L2_ZERO); // it keeps its place
    assert_int_equal(slice->state, SLICE_DIRTY);
    assert_true(quarantine_empty(q));
    map_replace(e.image, slice, index, 0);
    assert_int_equal(q->count, 1);
    assert_int_equal(TAILQ_FIRST(&q->pending)->first, (raw & FORMAT_L2_OFFSET_MASK) / CLUSTER);
    map_replace(e.image, slice, index, FORMAT_L2_ZERO); // nothing refers to anything
    map_replace(e.image, slice, index, 0);
    assert_int_equal(q->count, 1);
    assert_int_equal(e.image->mapping_changes, changes + 4);
    engine_end(&e);
}

// Compressed data lies across two clusters, each of which has a reference less.
static void compressed_data_may_touch_two(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t host = engine_disk_entry(&e, 1) & FORMAT_L2_OFFSET_MASK;
    uint64_t sectors = 3ull << format_compressed_shift(16);
    patch(&e, 20, FORMAT_COMPRESSED | sectors | (host - 1024));
    patch(&e, 21, FORMAT_COMPRESSED | host);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, 20 * CLUSTER, CLUSTER), 0);
    const struct quarantined *first = TAILQ_FIRST(&e.image->quarantine->pending);
    assert_int_equal(first->first, host / CLUSTER - 1);
    assert_int_equal(first->count, 2);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, 21 * CLUSTER, CLUSTER), 0);
    assert_int_equal(e.image->quarantine->count, 2);
    engine_free(&e);
}

// ---- Tables of one's own ------------------------------------------------------------------------

// A table that a snapshot shares is copied, and the L1 entry lies behind the copy.
static void a_shared_table_is_copied_before_it_is_written(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    engine_snapshot(&e);
    uint64_t old = e.image->l1.entries[0];
    assert_int_equal(old & FORMAT_COPIED, 0);
    uint64_t entry = engine_disk_entry(&e, 0);
    assert_int_equal(engine_write(&e, 0, 512, 9), 0);
    assert_int_not_equal(e.image->l1.entries[0] & FORMAT_L1_OFFSET_MASK, old);
    assert_true(e.image->l1.entries[0] & FORMAT_COPIED);
    assert_int_equal(engine_count(&e, "l2"), 1);
    engine_watch(&e);
    assert_int_equal(engine_flush(&e), 0);
    assert_string_equal(e.order, "header. barrier. l2 l1.. barrier.");
    // The snapshot's table is as it was.
    assert_int_equal(format_get64(e.disk->bytes + old), entry);
    engine_expect(&e, 0, 512, 9);
    engine_expect(&e, 512, 3 * CLUSTER - 512, 1);
    engine_end(&e);
}

// The copy alone is reason for a barrier before its L1 entry: the dirty bit is set already, and
// what is written goes to fresh space over zeros.
static void a_copy_is_durable_before_its_l1_entry(void **state)
{
    struct create_options create = engine_small;
    struct engine e;

    (void)state;
    create.lazy_refcounts = true;
    engine_begin(&e, &create);
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    assert_int_equal(engine_write(&e, 32768, 512, 1), 0);
    engine_snapshot(&e);
    assert_int_equal(engine_write(&e, 65536, 512, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(e.image->dirty_bit, DIRTY_BIT_SET);
    assert_int_equal(engine_write(&e, 512, 512, 2), 0);
    engine_watch(&e);
    assert_int_equal(engine_flush(&e), 0);
    assert_string_equal(e.order, "barrier. l2 l1.. barrier.");
    engine_end(&e);
}

static void who_needs_the_table_waits_for_one_copy(void **state)
{
    struct request writes[3];
    struct engine e;

    (void)state;
    begin(&e);
    engine_snapshot(&e);
    for (unsigned i = 0; i < 3; i++)
        engine_start(&e, &writes[i], OP_WRITE, 0, (40 + i) * CLUSTER, 512);
    engine_hold(&e, "l2");
    assert_int_equal(engine_count(&e, "l2"), 1);
    engine_run(&e);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(writes[i].done, 1);
        assert_int_equal(writes[i].op.result, 0);
    }
    assert_int_equal(engine_count(&e, "l2"), 1);
    engine_end(&e);
}

// All waiting ops see the error; the cluster is given up; the next op makes another copy.
static void a_copy_that_fails(void **state)
{
    static const char *const where[] = {"read-l2", "l2"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct request writes[2];
        struct engine e;

        begin(&e);
        engine_snapshot(&e);
        engine_expect(&e, 0, 512, 1); // the slice is in memory
        engine_watch(&e);
        for (unsigned n = 0; n < 2; n++)
            engine_start(&e, &writes[n], OP_WRITE, 0, (40 + n) * CLUSTER, 512);
        scripted_file_end(e.disk, engine_reach(&e, where[i]), -EIO);
        engine_run(&e);
        for (unsigned n = 0; n < 2; n++) {
            assert_int_equal(writes[n].done, 1);
            assert_int_equal(writes[n].op.result, -EIO);
        }
        assert_int_equal(e.image->quarantine->count, 1);
        assert_true(LIST_EMPTY(&e.image->table_copies));
        assert_int_equal(engine_write(&e, 40 * CLUSTER, 512, 5), 0);
        engine_end(&e);
    }
}

// A new table in space that does not read as zeros is written first, behind a barrier.
static void a_new_table_on_a_device_is_zeroed(void **state)
{
    struct engine e = {.disk = scripted_file_new()};

    (void)state;
    scripted_file_create(e.disk, &engine_large);
    memset(e.disk->bytes + e.disk->size, 0x77, 1u << 20);
    e.disk->size += 1u << 20;
    e.disk->file.fresh_is_zero = false;
    engine_open(&e, &(struct image_options){.format = IMAGE_FORMAT_QCOW2});
    assert_int_equal(engine_write(&e, 5 * CLUSTER, 512, 1), 0);
    assert_int_equal(engine_count(&e, "l2"), 1);
    engine_watch(&e);
    assert_int_equal(engine_flush(&e), 0);
    assert_string_equal(e.order, "header. barrier. l2 l1.. barrier.");
    engine_expect(&e, 0, 5 * CLUSTER, 0);
    engine_expect(&e, 5 * CLUSTER + 512, CLUSTER - 512, 0);
    engine_end(&e);
}

// Tells if a lookup would wait.
static void what_is_in_memory(void **state)
{
    struct image_options options;
    struct mapping m;
    struct engine e;
    struct error err;

    (void)state;
    engine_begin(&e, &engine_small);
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    options = e.image->options;
    assert_int_equal(image_finish(e.image, &err), 0);
    engine_crash(&e, &options);
    assert_false(map_in_memory(e.image, 0));
    assert_true(map_in_memory(e.image, 1u << 20)); // there is no table
    assert_int_equal(look_up(&e, 0, 512, &m), 0);
    assert_true(map_in_memory(e.image, 0));
    engine_free(&e);
}

// L1 entries of a damaged image: the flag alone is no table; a table at no place for one is neither
// read, copied nor written.
static void damaged_l1_entries(void **state)
{
    struct slice *slice;
    unsigned index;
    struct engine e;
    struct op op;

    (void)state;
    engine_begin(&e, &engine_small);
    op_init(&op, e.image, e.image->runq, &machine);
    e.image->l1.entries[1] = FORMAT_COPIED;
    assert_int_equal(engine_write(&e, 32768, 512, 1), 0);
    assert_int_not_equal(e.image->l1.entries[1] & FORMAT_L1_OFFSET_MASK, 0);
    e.image->l1.entries[1] += 1ull << 56 | 9; // reserved bits say nothing here
    engine_expect(&e, 32768, 512, 1);
    engine_free(&e);

    engine_begin(&e, &engine_large);
    op_init(&op, e.image, e.image->runq, &machine);
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    e.image->l1.entries[0] |= 512;
    assert_int_equal(map_slice_for_change(&op, 0, &slice, &index), -EIO);
    e.image->l1.entries[0] &= ~FORMAT_COPIED;
    assert_int_equal(map_own_table(&op, 0), -EIO);
    assert_int_equal(engine_write(&e, 0, 512, 1), -EIO);
    engine_free(&e);
}

// An entry that names metadata: what it names is not given up for others to use.
static void metadata_is_not_given_up(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    patch(&e, 8, e.image->header.l1_offset);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, 8 * CLUSTER, CLUSTER), 0);
    assert_true(quarantine_empty(e.image->quarantine));
    assert_true(engine_said(&e, "would have overwritten the L1 table"));
    assert_int_equal(engine_flush(&e), -EIO);
    engine_free(&e);
}

// The cluster that an invalid entry names is not known.
static void an_invalid_entry_gives_up_nothing(void **state)
{
    struct slice *slice;
    unsigned index;
    struct engine e;
    struct op op;

    (void)state;
    begin(&e);
    patch(&e, 8, 3 * CLUSTER + 512);
    op_init(&op, e.image, e.image->runq, &machine);
    while (map_slice_for_change(&op, 8 * CLUSTER, &slice, &index) == OP_PARKED)
        engine_run(&e);
    map_replace(e.image, slice, index, 0);
    assert_true(quarantine_empty(e.image->quarantine));
    engine_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_of_clusters),
        cmocka_unit_test(copied_is_not_believed_in_fresh_space),
        cmocka_unit_test(copied_is_not_believed_under_a_shared_table),
        cmocka_unit_test(damaged_entries_are_errors),
        cmocka_unit_test(replacing_gives_up_what_is_referred_to_no_more),
        cmocka_unit_test(compressed_data_may_touch_two),
        cmocka_unit_test(a_shared_table_is_copied_before_it_is_written),
        cmocka_unit_test(a_copy_is_durable_before_its_l1_entry),
        cmocka_unit_test(who_needs_the_table_waits_for_one_copy),
        cmocka_unit_test(a_copy_that_fails),
        cmocka_unit_test(a_new_table_on_a_device_is_zeroed),
        cmocka_unit_test(what_is_in_memory),
        cmocka_unit_test(damaged_l1_entries),
        cmocka_unit_test(metadata_is_not_given_up),
        cmocka_unit_test(an_invalid_entry_gives_up_nothing),
    };

    return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
