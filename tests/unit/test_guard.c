// SPDX-License-Identifier: Apache-2.0
// test_guard.c: no write hits metadata: collecting its places, comparing targets with them, and an
// image that contradicts itself.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/format/format.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/refcount.h"
#include "tests/unit/engine.h"

#define CLUSTER 512u

// Metadata is known.
static void begin(struct engine *e)
{
    engine_begin(e, &engine_small);
    assert_int_equal(engine_write(e, 0, CLUSTER, 1), 0);
    assert_int_equal(engine_flush(e), 0);
    assert_int_equal(e->image->guard->state, GUARD_READY);
    engine_watch(e);
}

static void every_structure_is_known(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    const struct header *h = &e.image->header;
    assert_string_equal(guard_hit(e.image, 0, 1), "the header");
    assert_string_equal(guard_hit(e.image, h->l1_offset + CLUSTER, 1), "the L1 table");
    assert_string_equal(guard_hit(e.image, h->refcount_table_offset, CLUSTER),
                        "the refcount table");
    assert_string_equal(guard_hit(e.image, e.image->refcounts->table[0] + 9, 4),
                        "an L2 table or refcount block");
    uint64_t table = e.image->l1.entries[0] & FORMAT_L1_OFFSET_MASK;
    assert_non_null(guard_hit(e.image, table, CLUSTER));
    uint64_t data = engine_disk_entry(&e, 0) & FORMAT_L2_OFFSET_MASK;
    assert_null(guard_hit(e.image, data, CLUSTER));
    // One byte too many, on either side.
    assert_int_equal(data, table + CLUSTER);
    assert_non_null(guard_hit(e.image, data - 1, CLUSTER));
    assert_null(guard_hit(e.image, data, 3 * CLUSTER));
    engine_end(&e);
}

static void snapshots_are_known(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    engine_snapshot(&e);
    uint64_t old = e.image->l1.entries[0] & FORMAT_L1_OFFSET_MASK;
    assert_int_equal(engine_write(&e, 0, CLUSTER, 2), 0);
    const struct snapshot *snapshot = &e.image->snapshots.snapshots[0];
    assert_non_null(guard_hit(e.image, snapshot->l1_offset, 1));
    assert_non_null(guard_hit(e.image, e.image->header.snapshot_offset, 1));
    // The shared table as well as its copy.
    assert_non_null(guard_hit(e.image, old, 1));
    assert_non_null(guard_hit(e.image, e.image->l1.entries[0] & FORMAT_L1_OFFSET_MASK, 1));
    engine_end(&e);
}

static void tables_come_and_go(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t far = 900 * CLUSTER;
    assert_null(guard_hit(e.image, far, 1));
    assert_int_equal(guard_add(e.image, far), 0);
    assert_non_null(guard_hit(e.image, far, 1));
    guard_remove(e.image, far);
    assert_null(guard_hit(e.image, far, 1));
    uint64_t table = e.image->header.refcount_table_offset;
    guard_move_refcount_table(e.image, 900, 2);
    assert_null(guard_hit(e.image, table, 1));
    assert_non_null(guard_hit(e.image, far + CLUSTER, 1));
    assert_null(guard_hit(e.image, far + 2 * CLUSTER, 1));
    engine_free(&e);
}

// An entry of a damaged image claims the L1 table as a guest's own cluster.
static void a_write_over_metadata_is_refused(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    struct image_options options = e.image->options;
    struct error err;
    assert_int_equal(image_finish(e.image, &err), 0);
    uint64_t l1 = e.image->header.l1_offset;
    uint64_t table = e.image->l1.entries[0] & FORMAT_L1_OFFSET_MASK;
    format_put64(e.disk->bytes + table + 8, l1 | FORMAT_COPIED);
    engine_crash(&e, &options);
    uint64_t first = format_get64(e.disk->bytes + l1);
    assert_int_equal(engine_write(&e, CLUSTER, CLUSTER, 0xff), -EIO);
    engine_run(&e);
    assert_int_equal(format_get64(e.disk->bytes + l1), first);
    assert_true(engine_said(&e, "would have overwritten the L1 table: the image is corrupt"));
    assert_true(format_get64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE) &
                HEADER_INCOMPATIBLE_CORRUPT);
    // Writes are refused from now on; reads go on.
    assert_int_equal(engine_write(&e, 0, CLUSTER, 2), -EIO);
    engine_expect(&e, 0, CLUSTER, 1);
    engine_free(&e);
}

// Two tables in one place would be written over each other.
static void tables_that_overlap_forbid_changes(void **state)
{
    static const char *const what[] = {"lies over the L1 table", "lies over the refcount table"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct request writes[2];
        struct engine e;

        engine_begin(&e, &engine_small);
        if (i == 0)
            e.image->l1.entries[3] = e.image->header.l1_offset | FORMAT_COPIED;
        else
            e.image->refcounts->table[1] = e.image->header.refcount_table_offset;
        for (size_t n = 0; n < 2; n++)
            engine_start(&e, &writes[n], OP_WRITE, 0, n * CLUSTER, CLUSTER);
        engine_run(&e);
        for (size_t n = 0; n < 2; n++) {
            assert_int_equal(writes[n].done, 1);
            assert_int_equal(writes[n].op.result, -EIO);
        }
        assert_true(engine_said(&e, what[i]));
        assert_int_equal(e.image->guard->state, GUARD_NONE);
        engine_free(&e);
    }
}

// A large L1 table is looked through in turns. Ops that come meanwhile wait, and a table that is
// added meanwhile is no contradiction.
static void collecting_takes_turns(void **state)
{
    struct create_options create = engine_small;
    struct request writes[2];
    struct engine e;

    (void)state;
    create.size = 512u << 20;
    engine_begin(&e, &create);
    assert_true(e.image->l1.size > 2 * GUARD_ENTRIES_A_TURN);
    engine_start(&e, &writes[0], OP_WRITE, 0, 0, CLUSTER);
    assert_true(scripted_file_turn(e.disk));
    assert_int_equal(e.image->guard->state, GUARD_COLLECTING);
    assert_true(e.image->guard->next <= GUARD_ENTRIES_A_TURN);
    engine_start(&e, &writes[1], OP_WRITE, 0, CLUSTER, CLUSTER);
    // A refcount block that a sync has placed; its entry is still to be looked at.
    uint64_t fresh = e.image->alloc->fresh * CLUSTER;
    assert_int_equal(guard_add(e.image, fresh + 40 * CLUSTER), 0);
    e.image->l1.entries[e.image->l1.size - 1] = (fresh + 40 * CLUSTER) | FORMAT_COPIED;
    engine_run(&e);
    assert_int_equal(writes[0].op.result, 0);
    assert_int_equal(writes[1].op.result, 0);
    assert_int_equal(writes[0].done + writes[1].done, 2);
    assert_non_null(guard_hit(e.image, fresh + 40 * CLUSTER, 1));
    engine_free(&e);
}

// Snapshots of a damaged image: an L1 table at no place for one, and one that overlaps the table of
// snapshots behind it.
static void damaged_snapshots(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct engine e;
        struct error err;

        begin(&e);
        engine_snapshot(&e);
        struct image_options options = e.image->options;
        uint64_t table = e.image->header.snapshot_offset;
        assert_int_equal(image_finish(e.image, &err), 0);
        if (i == 0)
            format_put64(e.disk->bytes + table, 9);
        else if (i == 1)
            format_put32(e.disk->bytes + table + FORMAT_SNAPSHOT_L1_SIZE, 150);
        else // in the middle of the disk's own, and shorter
            format_put64(e.disk->bytes + table, e.image->header.l1_offset);
        engine_crash(&e, &options);
        assert_int_equal(engine_write(&e, CLUSTER, CLUSTER, 2), 0);
        assert_non_null(guard_hit(e.image, table, 1));
        assert_non_null(guard_hit(e.image, e.image->header.l1_offset + CLUSTER, 1));
        engine_free(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_structure_is_known),
        cmocka_unit_test(snapshots_are_known),
        cmocka_unit_test(tables_come_and_go),
        cmocka_unit_test(a_write_over_metadata_is_refused),
        cmocka_unit_test(tables_that_overlap_forbid_changes),
        cmocka_unit_test(collecting_takes_turns),
        cmocka_unit_test(damaged_snapshots),
    };

    return cmocka_run_group_tests_name("guard", tests, NULL, NULL);
}
