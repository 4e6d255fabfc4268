// SPDX-License-Identifier: Apache-2.0
// test_request.c: requests: their admission, copies on write, the view of other requests meanwhile,
// and the remains of a failed request; reads that note holes and loans; block status.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/loan.h"
#include "qcow2/format/format.h"
#include "qcow2/request/request.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"
#include "tests/unit/engine.h"

#define CLUSTER 65536u

static void begin(struct engine *e)
{
    engine_begin(e, &engine_large);
    assert_int_equal(engine_write(e, 0, 4 * CLUSTER, 1), 0);
    assert_int_equal(engine_flush(e), 0);
    engine_watch(e);
}

// ---- Admission ----------------------------------------------------------------------------------

static void what_is_refused_at_the_door(void **state)
{
    const uint64_t size = engine_large.size;
    const struct {
        enum op_kind kind;
        uint64_t offset, length;
        int result;
    } rows[] = {
        {OP_READ, size, 1, -EINVAL},
        {OP_READ, size, 0, 0},
        {OP_READ, size - 1, 2, -EINVAL},
        {OP_READ, UINT64_MAX, 2, -EINVAL},
        {OP_WRITE, size, 1, -ENOSPC},
        {OP_WRITE_ZEROES, size - 1, UINT64_MAX, -ENOSPC},
        {OP_DISCARD, size + 1, 0, -ENOSPC},
        {OP_READ, 0, OP_PAYLOAD_MAX + 1, -EINVAL},
        {OP_WRITE, 0, OP_PAYLOAD_MAX + 1, -EINVAL},
        {OP_FLUSH, UINT64_MAX, 7, 0},
    };
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct request r;

        engine_start(&e, &r, rows[i].kind, 0, rows[i].offset, rows[i].length);
        assert_int_equal(r.done, 0); // never inside
        engine_run(&e);
        assert_int_equal(r.done, 1);
        assert_int_equal(r.op.result, rows[i].result);
    }
    assert_string_equal(e.order, "");
    assert_int_equal(e.image->op_count, 0);
    engine_crash(&e, &(struct image_options){.format = IMAGE_FORMAT_QCOW2, .read_only = true});
    assert_int_equal(engine_write(&e, 0, 1, 1), -EPERM);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, 0, 1), -EPERM);
    assert_int_equal(engine_flush(&e), 0);
    engine_free(&e);
}

// ---- Writes -------------------------------------------------------------------------------------

// A cluster that a snapshot shares is copied, around the written bytes, to another place.
static void the_rest_of_a_shared_cluster_is_copied(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    engine_snapshot(&e);
    uint64_t old = engine_disk_entry(&e, 0) & FORMAT_L2_OFFSET_MASK;
    assert_int_equal(engine_write(&e, 0, CLUSTER, 2), 0); // the table is one's own now
    engine_watch(&e);
    // The end of one cluster and the beginning of the next: head and tail.
    assert_int_equal(engine_write(&e, 2 * CLUSTER - 100, 200, 3), 0);
    assert_string_equal(e.order, "read-data. read-data. data.");
    engine_expect(&e, CLUSTER, CLUSTER - 100, 1);
    engine_expect(&e, 2 * CLUSTER - 100, 200, 3);
    engine_expect(&e, 2 * CLUSTER + 100, CLUSTER - 100, 1);
    assert_int_equal(e.image->bounce_bytes, 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(e.disk->bytes[old + i * CLUSTER], 1);
    // Data that replaces data is durable before its entry.
    engine_watch(&e);
    assert_int_equal(engine_flush(&e), 0);
    assert_string_equal(e.order, "header. barrier. l2 l1.. barrier.");
    engine_end(&e);
}

// The guest sees the new cluster when its data is in the file, not before.
static void a_new_cluster_is_seen_with_its_data(void **state)
{
    static unsigned char found[512];
    struct request write;
    struct engine e;

    (void)state;
    begin(&e);
    engine_fill(9);
    engine_start(&e, &write, OP_WRITE, 0, 20 * CLUSTER, 512);
    engine_hold(&e, "data");
    struct request read = {.op = {.kind = OP_READ,
                                  .offset = 20 * CLUSTER,
                                  .length = 512,
                                  .buf = found,
                                  .done = write.op.done}};
    memset(found, 0xee, sizeof(found));
    op_start(e.image, &read.op);
    engine_hold(&e, "data");
    assert_int_equal(read.done, 1);
    assert_int_equal(found[0], 0);
    assert_int_equal(engine_entry(&e, 20), 0);
    engine_run(&e);
    engine_expect(&e, 20 * CLUSTER, 512, 9);
    engine_expect(&e, 20 * CLUSTER + 512, CLUSTER - 512, 0);
    engine_end(&e);
}

// Two requests that change the mapping of one cluster come one after the other. The second finds
// the change of the first, and no data of either is lost.
static void two_writes_to_one_new_cluster(void **state)
{
    struct request writes[2];
    struct engine e;

    (void)state;
    begin(&e);
    engine_fill(9);
    for (unsigned i = 0; i < 2; i++)
        engine_start(&e, &writes[i], OP_WRITE, 0, 20 * CLUSTER + 4096 * i, 512);
    engine_hold(&e, "data");
    assert_int_equal(engine_count(&e, "data"), 1);
    engine_run(&e);
    assert_string_equal(e.order, "data. data.");
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(writes[i].op.result, 0);
        engine_expect(&e, 20 * CLUSTER + 4096 * i, 512, 9);
    }
    engine_expect(&e, 20 * CLUSTER + 512, 4096 - 512, 0);
    engine_end(&e);
}

// New clusters are taken for several mappings at once: here a shared cluster and a new one, which
// another write fills already.
static void a_write_over_several_mappings_waits_for_all(void **state)
{
    struct request part, all;
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_write(&e, 20 * CLUSTER, CLUSTER, 1), 0);
    engine_snapshot(&e);
    engine_watch(&e);
    engine_fill(5);
    engine_start(&e, &part, OP_WRITE, 0, 21 * CLUSTER + 32768, 4096);
    engine_hold(&e, "data");
    engine_start(&e, &all, OP_WRITE, 0, 20 * CLUSTER, CLUSTER + 4096);
    engine_hold(&e, "data");
    assert_int_equal(engine_count(&e, "data"), 1);
    engine_run(&e);
    assert_int_equal(part.done + all.done, 2);
    engine_expect(&e, 20 * CLUSTER, CLUSTER + 4096, 5);
    engine_expect(&e, 21 * CLUSTER + 32768, 4096, 5);
    engine_end(&e);
}

// A failed write links nothing, gives its clusters up, and lets others go on.
static void a_write_that_fails_leaves_nothing(void **state)
{
    static const char *const where[] = {"data", "read-data"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct request first, second;
        struct engine e;

        begin(&e);
        engine_snapshot(&e);
        assert_int_equal(engine_write(&e, 0, 512, 1), 0);
        engine_fill(7);
        engine_start(&e, &first, OP_WRITE, OP_FUA, CLUSTER + 512, 512);
        engine_start(&e, &second, OP_WRITE, 0, CLUSTER + 4096, 512);
        scripted_file_end(e.disk, engine_reach(&e, where[i]), -EIO);
        engine_run(&e);
        assert_int_equal(first.op.result, -EIO);
        assert_int_equal(second.op.result, 0);
        engine_expect(&e, CLUSTER + 512, 512, 1);
        engine_expect(&e, CLUSTER + 4096, 512, 7);
        assert_int_equal(e.image->bounce_bytes, 0);
        assert_int_equal(e.image->op_count, 0);
        engine_end(&e);
    }
}

static void a_write_in_place_that_fails(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &write, OP_WRITE, OP_FUA, 0, 512);
    scripted_file_end(e.disk, engine_reach(&e, "data"), -EIO);
    engine_run(&e);
    assert_int_equal(write.op.result, -EIO);
    assert_string_equal(e.order, "data.");
    assert_int_equal(e.image->latched_error, 0);
    engine_end(&e);
}

// A COPIED flag that refcounts contradict does not allow a write in place.
static void a_contradicted_flag_is_not_believed(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t host = engine_entry(&e, 1) & FORMAT_L2_OFFSET_MASK;
    assert_int_equal(refcounts_set(e.image->refcounts, host / CLUSTER, 2), 0);
    assert_int_equal(engine_write(&e, CLUSTER + 512, 512, 8), 0);
    assert_int_not_equal(engine_entry(&e, 1) & FORMAT_L2_OFFSET_MASK, host);
    assert_int_equal(e.disk->bytes[host + 512], 1);
    engine_expect(&e, CLUSTER, 512, 1);
    engine_expect(&e, CLUSTER + 512, 512, 8);
    engine_free(&e);
}

// One write over old and new clusters, over the end of a slice: all parts are written.
static void a_long_write_goes_in_parts(void **state)
{
    struct create_options create = engine_small;
    struct engine e;

    (void)state;
    create.lazy_refcounts = true;
    engine_begin(&e, &create);
    assert_int_equal(engine_write(&e, 10 * 512, 512, 1), 0);
    assert_int_equal(engine_do(&e, OP_WRITE_ZEROES, OP_NO_HOLE, 20 * 512, 512), 0);
    engine_watch(&e);
    assert_int_equal(engine_write(&e, 100, 80 * 512, 4), 0);
    engine_expect(&e, 0, 100, 0);
    engine_expect(&e, 100, 80 * 512, 4);
    engine_expect(&e, 100 + 80 * 512, 412, 0);
    engine_end(&e);
}

// Copies on write hold a limited amount of memory; a later one waits, and is woken.
static void copies_wait_for_memory(void **state)
{
    enum { WRITES = 40 };
    static struct request writes[WRITES];
    struct create_options create = engine_large;
    struct engine e = {.disk = scripted_file_new()};
    size_t most = 0;

    (void)state;
    create.size = 256u << 20;
    create.cluster_bits = 21;
    scripted_file_create(e.disk, &create);
    // A device: zeros are written around the first write.
    e.disk->size = 128u << 20;
    e.disk->file.fresh_is_zero = false;
    engine_open(&e, &(struct image_options){.format = IMAGE_FORMAT_QCOW2});
    for (unsigned i = 0; i < WRITES; i++)
        engine_start(&e, &writes[i], OP_WRITE, 0, ((uint64_t)i << 21) + 512, 512);
    engine_hold(&e, "data");
    assert_int_equal(engine_count(&e, "data"), 33);
    assert_string_equal(writes[39].op.wait.event, "memory for copies on write");
    while (e.disk->queued > 0 || !runq_empty(&e.disk->runq)) {
        if (e.image->bounce_bytes > most)
            most = e.image->bounce_bytes;
        if (!scripted_file_turn(e.disk))
            scripted_file_end(e.disk, 0, 0);
    }
    assert_true(most < OP_BOUNCE_BYTES_MAX + (2u << 20));
    for (unsigned i = 0; i < WRITES; i++) {
        assert_int_equal(writes[i].done, 1);
        assert_int_equal(writes[i].op.result, 0);
    }
    assert_int_equal(e.image->bounce_bytes, 0);
    engine_free(&e);
}

// The quarantine is full: an op that would give up more waits for a sync.
static void a_full_quarantine_is_waited_for(void **state)
{
    struct request discard;
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, 0, CLUSTER), 0);
    e.image->quarantine->count += QUARANTINE_MAX - 1;
    engine_watch(&e);
    engine_start(&e, &discard, OP_DISCARD, 0, 2 * CLUSTER, CLUSTER);
    engine_hold(&e, "l2");
    assert_int_equal(discard.done, 0);
    assert_string_equal(discard.op.wait.event, "room in the quarantine");
    e.image->quarantine->count -= QUARANTINE_MAX - 1;
    engine_run(&e);
    assert_int_equal(discard.done, 1);
    assert_string_equal(e.order, "l2. barrier.");
    engine_end(&e);
}

// ---- Reads --------------------------------------------------------------------------------------

// Reads a range with flags, into a buffer of arbitrary bytes.
static size_t read_parts(struct engine *e, unsigned flags, uint64_t length, struct extent *extents,
                         size_t max_extents, unsigned char *buf, struct request *r)
{
    struct request start;

    engine_start(e, &start, OP_FLUSH, 0, 0, 0);
    engine_run(e);
    memset(buf, 0xee, length);
    *r = (struct request){.op = {.kind = OP_READ,
                                 .flags = flags,
                                 .length = length,
                                 .buf = buf,
                                 .extents = extents,
                                 .max_extents = max_extents,
                                 .done = start.op.done}};
    op_start(e->image, &r->op);
    engine_run(e);
    assert_int_equal(r->done, 1);
    assert_int_equal(r->op.result, 0);
    return r->op.extent_count;
}

// Without room for another extent zeros are read as bytes.
static void holes_are_noted_while_there_is_room(void **state)
{
    static unsigned char buf[8 * CLUSTER];
    struct extent extents[8];
    struct request r;
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, CLUSTER, CLUSTER), 0);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, 3 * CLUSTER, CLUSTER), 0);
    // Data, hole, data, hole to the end.
    assert_int_equal(read_parts(&e, OP_REPORT_HOLES, 8 * CLUSTER, extents, 8, buf, &r), 4);
    assert_true(extents[1].hole && extents[1].zero && extents[1].length == CLUSTER);
    assert_false(extents[2].zero);
    assert_int_equal(extents[3].length, 5 * CLUSTER);
    assert_int_equal(buf[CLUSTER], 0xee); // not filled
    assert_int_equal(buf[2 * CLUSTER], 1);

    assert_int_equal(read_parts(&e, OP_REPORT_HOLES, 8 * CLUSTER, extents, 3, buf, &r), 3);
    assert_true(extents[1].zero);
    assert_int_equal(extents[2].length, 6 * CLUSTER);
    assert_int_equal(buf[3 * CLUSTER], 0);
    assert_int_equal(buf[8 * CLUSTER - 1], 0);
    // Without room for any extent.
    assert_int_equal(read_parts(&e, 0, 8 * CLUSTER, NULL, 0, buf, &r), 0);
    assert_int_equal(buf[CLUSTER], 0);
    engine_end(&e);
}

// Bytes are lent while an extent is free to note that, from one file only.
static void loans_are_taken_while_there_is_room(void **state)
{
    static unsigned char buf[8 * CLUSTER];
    struct extent extents[8];
    struct request r;
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_do(&e, OP_DISCARD, OP_FUA, CLUSTER, CLUSTER), 0);
    e.disk->makes_loans = true;
    assert_int_equal(read_parts(&e, OP_LOAN, 4 * CLUSTER, extents, 8, buf, &r), 3);
    assert_non_null(extents[0].data);
    assert_null(extents[1].data);
    assert_int_equal(extents[2].length, 2 * CLUSTER);
    assert_int_equal(e.disk->loans, 2);
    assert_true(loan_settle(&r.op.loan, extents, r.op.extent_count, buf));
    assert_null(r.op.loan.file);
    assert_int_equal(e.disk->loans, 0);
    assert_int_equal(buf[0], 1);
    assert_int_equal(buf[CLUSTER], 0);
    assert_int_equal(buf[4 * CLUSTER - 1], 1);

    // One extent: it is for data in the buffer.
    assert_int_equal(read_parts(&e, OP_LOAN, 4 * CLUSTER, extents, 1, buf, &r), 1);
    assert_null(r.op.loan.file);
    assert_int_equal(buf[4 * CLUSTER - 1], 1);
    // A read that fails after it took a loan returns it.
    engine_start(&e, &r, OP_READ, 0, 0, 4 * CLUSTER);
    engine_run(&e);
    r.op.flags = OP_LOAN;
    r.op.extents = extents;
    r.op.max_extents = 8;
    op_start(e.image, &r.op);
    scripted_file_end(e.disk, engine_reach(&e, "read-data"), 0);
    scripted_file_end(e.disk, engine_reach(&e, "read-data"), -EIO);
    engine_run(&e);
    assert_int_equal(r.op.result, -EIO);
    assert_null(r.op.loan.file);
    assert_int_equal(e.disk->loans, 0);
    engine_end(&e);
}

// ---- Block status -------------------------------------------------------------------------------

static void kinds_of_extents(void **state)
{
    struct extent extents[8];
    struct op status = {
        .kind = OP_BLOCK_STATUS, .length = 12 * CLUSTER, .extents = extents, .max_extents = 8};
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_do(&e, OP_WRITE_ZEROES, OP_NO_HOLE, 6 * CLUSTER, CLUSTER), 0);
    // Data that lies in a hole of the file reads as zeros, and is mapped.
    uint64_t host = engine_entry(&e, 1) & FORMAT_L2_OFFSET_MASK;
    memset(e.disk->bytes + host, 0, CLUSTER);
    assert_int_equal(scripted_op(e.disk, e.image, &status), 0);
    static const struct extent expected[] = {
        {CLUSTER, false, false, 1, NULL},     {CLUSTER, false, true, 1, NULL},
        {2 * CLUSTER, false, false, 1, NULL}, {2 * CLUSTER, true, true, 0, NULL},
        {CLUSTER, false, true, 1, NULL},      {5 * CLUSTER, true, true, 0, NULL}};
    assert_int_equal(status.extent_count, 6);
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(extents[i].length, expected[i].length);
        assert_int_equal(extents[i].hole, expected[i].hole);
        assert_int_equal(extents[i].zero, expected[i].zero);
        assert_int_equal(extents[i].depth, expected[i].depth);
    }
    status.max_extents = 2;
    assert_int_equal(scripted_op(e.disk, e.image, &status), 0);
    assert_int_equal(status.extent_count, 2);
    engine_end(&e);
}

// Many lookups are done in turns.
static void a_long_status_takes_turns(void **state)
{
    static struct extent extents[400];
    struct create_options create = engine_small;
    struct engine e;
    unsigned turns = 0;

    (void)state;
    create.lazy_refcounts = true;
    engine_begin(&e, &create);
    for (unsigned i = 0; i < 300; i += 2)
        assert_int_equal(engine_do(&e, OP_WRITE_ZEROES, OP_NO_HOLE, i * 512, 512), 0);
    struct request r;
    engine_start(&e, &r, OP_FLUSH, 0, 0, 0);
    engine_run(&e);
    r.op = (struct op){.kind = OP_BLOCK_STATUS,
                       .length = 300 * 512,
                       .extents = extents,
                       .max_extents = 400,
                       .done = r.op.done};
    r.done = 0;
    op_start(e.image, &r.op);
    while (r.done == 0) {
        assert_true(scripted_file_turn(e.disk));
        turns++;
    }
    assert_int_equal(r.op.extent_count, 300);
    assert_true(turns >= 4);
    engine_end(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_refused_at_the_door),
        cmocka_unit_test(the_rest_of_a_shared_cluster_is_copied),
        cmocka_unit_test(a_new_cluster_is_seen_with_its_data),
        cmocka_unit_test(two_writes_to_one_new_cluster),
        cmocka_unit_test(a_write_over_several_mappings_waits_for_all),
        cmocka_unit_test(a_write_that_fails_leaves_nothing),
        cmocka_unit_test(a_write_in_place_that_fails),
        cmocka_unit_test(a_contradicted_flag_is_not_believed),
        cmocka_unit_test(a_long_write_goes_in_parts),
        cmocka_unit_test(copies_wait_for_memory),
        cmocka_unit_test(a_full_quarantine_is_waited_for),
        cmocka_unit_test(holes_are_noted_while_there_is_room),
        cmocka_unit_test(loans_are_taken_while_there_is_room),
        cmocka_unit_test(kinds_of_extents),
        cmocka_unit_test(a_long_status_takes_turns),
    };

    return cmocka_run_group_tests_name("request", tests, NULL, NULL);
}
