// SPDX-License-Identifier: Apache-2.0
// test_sync.c: the rules at the head of sync.c, as the order in which a sync submits its I/O, and
// the effects of failures.
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "qcow2/durable/sync.h"
#include "qcow2/durable/sync_check.h"
#include "qcow2/durable/sync_state.h"
#include "qcow2/format/format.h"
#include "qcow2/mapping/cache.h"
#include "tests/unit/engine.h"

#define CLUSTER 65536u

// An image in which guest cluster 0 is mapped and everything is durable.
static void begin(struct engine *e)
{
    engine_begin(e, &engine_large);
    assert_int_equal(engine_write(e, 0, CLUSTER, 1), 0);
    assert_int_equal(engine_flush(e), 0);
    engine_watch(e);
}

// ---- Order --------------------------------------------------------------------------------------

// The dirty bit is durable before the first tables, tables lie behind their data.
static void first_write(void **state)
{
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    assert_int_equal(engine_do(&e, OP_WRITE, OP_FUA, 0, 4096), 0);
    assert_string_equal(e.order, "read-block. reserve. data. read-l2. header. barrier. l2 l1.. "
                                 "barrier.");
    assert_int_equal(e.image->dirty_bit, DIRTY_BIT_SET);
    engine_end(&e);
}

// Fresh space over zeros: an entry that is durable before its data shows zeros, as before.
static void fresh_space_over_zeros_needs_one_barrier(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_do(&e, OP_WRITE, OP_FUA, CLUSTER, 4096), 0);
    assert_string_equal(e.order, "data. l2. barrier.");
    engine_end(&e);
}

// A cluster that was used before has old bytes: its data is durable before its entry.
static void used_space_needs_a_barrier_before_tables(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    uint64_t host = engine_disk_entry(&e, 0);
    assert_int_equal(engine_do(&e, OP_DISCARD, 0, 0, CLUSTER), 0);
    assert_int_equal(engine_flush(&e), 0);
    engine_watch(&e);
    assert_int_equal(engine_do(&e, OP_WRITE, OP_FUA, CLUSTER, 4096), 0);
    assert_string_equal(e.order, "data. barrier. l2. barrier.");
    assert_int_equal(engine_disk_entry(&e, 1), host);
    engine_end(&e);
}

static void data_in_place_needs_no_tables(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(engine_do(&e, OP_WRITE, OP_FUA, 0, 4096), 0);
    assert_string_equal(e.order, "data. barrier.");
    engine_watch(&e);
    assert_int_equal(engine_flush(&e), 0);
    assert_string_equal(e.order, "");
    engine_end(&e);
}

// Without lazy refcounts the refcounts are durable before the entries that they count.
static void refcounts_come_first_where_they_are_not_lazy(void **state)
{
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_small);
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    assert_int_equal(engine_flush(&e), 0);
    engine_watch(&e);
    assert_int_equal(engine_do(&e, OP_WRITE, OP_FUA, 512, 512), 0);
    assert_string_equal(e.order, "data. block. barrier. l2. barrier.");
    assert_int_equal(e.image->dirty_bit, DIRTY_BIT_CLEAR);
    engine_end(&e);
}

// Unknown autoclear bits are cleared before the first change, and only once.
static void autoclear_bits_go_first(void **state)
{
    struct engine e = {.disk = scripted_file_new()};

    (void)state;
    scripted_file_create(e.disk, &engine_small);
    format_put64(e.disk->bytes + FORMAT_HEADER_AUTOCLEAR, 1ull << 40);
    engine_open(&e, &(struct image_options){.format = IMAGE_FORMAT_QCOW2});
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    assert_string_equal(e.order, "header. barrier. read-block. reserve. data. read-l2.");
    assert_int_equal(format_get64(e.disk->bytes + FORMAT_HEADER_AUTOCLEAR), 0);
    engine_watch(&e);
    assert_int_equal(engine_write(&e, 0, 512, 1), 0);
    assert_string_equal(e.order, "data.");
    engine_end(&e);
}

// ---- Who waits for which sync -------------------------------------------------------------------

static void two_fua_writes_share_a_barrier(void **state)
{
    struct request a, b;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &a, OP_WRITE, OP_FUA, 0, 4096);
    engine_start(&e, &b, OP_WRITE, OP_FUA, 8192, 4096);
    // Both end in one turn of the loop.
    scripted_file_end(e.disk, 0, 0);
    scripted_file_end(e.disk, 0, 0);
    engine_run(&e);
    assert_string_equal(e.order, "data data.. barrier.");
    assert_int_equal(a.done + b.done, 2);
    engine_end(&e);
}

// Data that is written while a barrier runs is not durable when that ends.
static void a_write_behind_a_barrier_needs_another(void **state)
{
    struct request a, b;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &a, OP_WRITE, OP_FUA, 0, 4096);
    engine_reach(&e, "barrier");
    engine_start(&e, &b, OP_WRITE, OP_FUA, 8192, 4096);
    engine_hold(&e, "barrier");
    assert_int_equal(a.done + b.done, 0);
    scripted_file_end(e.disk, 0, 0);
    engine_hold(&e, "barrier");
    assert_int_equal(a.done, 1);
    assert_int_equal(b.done, 0);
    engine_run(&e);
    assert_int_equal(b.done, 1);
    assert_string_equal(e.order, "data. barrier data.. barrier.");
    engine_end(&e);
}

// A flush that finds no new data waits for the running sync, and starts none.
static void a_flush_joins_the_sync_that_covers_it(void **state)
{
    struct request write, flush;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &write, OP_WRITE, OP_FUA, 0, 4096);
    engine_reach(&e, "barrier");
    engine_start(&e, &flush, OP_FLUSH, 0, 0, 0);
    scripted_file_turns(e.disk);
    assert_int_equal(flush.done, 0);
    engine_run(&e);
    assert_int_equal(flush.done, 1);
    assert_int_equal(engine_count(&e, "barrier"), 1);
    engine_end(&e);
}

// Data that was answered while a sync runs is durable with the next one only.
static void a_flush_after_new_data_takes_the_next_sync(void **state)
{
    struct request fua, write, flush;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &fua, OP_WRITE, OP_FUA, 0, 4096);
    engine_hold(&e, "barrier");
    engine_start(&e, &write, OP_WRITE, 0, 8192, 4096);
    engine_hold(&e, "barrier");
    assert_int_equal(write.done, 1);
    engine_start(&e, &flush, OP_FLUSH, 0, 0, 0);
    engine_hold(&e, "barrier");
    scripted_file_end(e.disk, 0, 0);
    engine_hold(&e, "barrier");
    assert_int_equal(fua.done, 1);
    assert_int_equal(flush.done, 0);
    engine_run(&e);
    assert_int_equal(flush.done, 1);
    assert_int_equal(engine_count(&e, "barrier"), 2);
    engine_end(&e);
}

// A change after the tables were copied is written by the next sync.
static void tables_are_written_from_copies(void **state)
{
    struct request fua;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &fua, OP_WRITE, OP_FUA, CLUSTER, 4096);
    engine_hold(&e, "l2");
    assert_int_equal(engine_count(&e, "l2"), 1);
    struct request other;
    engine_start(&e, &other, OP_WRITE, 0, 2 * CLUSTER, 4096);
    engine_hold(&e, "l2");
    assert_int_equal(other.done, 1);
    assert_int_not_equal(engine_entry(&e, 2), 0);
    scripted_file_end(e.disk, 0, 0);
    assert_int_not_equal(engine_disk_entry(&e, 1), 0);
    assert_int_equal(engine_disk_entry(&e, 2), 0);
    engine_run(&e);
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(engine_disk_entry(&e, 2), engine_entry(&e, 2));
    engine_end(&e);
}

// So is a change that the first barrier does not cover.
static void a_change_behind_the_first_barrier_is_not_written(void **state)
{
    struct request fua, other;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    engine_start(&e, &fua, OP_WRITE, OP_FUA, 0, 4096);
    engine_hold(&e, "barrier");
    engine_start(&e, &other, OP_WRITE, 0, CLUSTER, 4096);
    engine_hold(&e, "barrier");
    assert_int_equal(other.done, 1);
    assert_int_not_equal(engine_entry(&e, 1), 0);
    assert_int_equal(engine_count(&e, "l2"), 0);
    engine_run(&e);
    assert_int_equal(fua.done, 1);
    assert_int_not_equal(engine_disk_entry(&e, 0), 0);
    assert_int_equal(engine_disk_entry(&e, 1), 0);
    engine_end(&e);
}

// ---- Failures -----------------------------------------------------------------------------------

// After any error of a barrier the state on disk is unknown.
static void a_failed_barrier_is_latched(void **state)
{
    static const int errors[] = {-EIO, -ENOSPC, -ENOMEM};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct request write, other;
        struct engine e;
        struct error err;

        begin(&e);
        engine_start(&e, &write, OP_WRITE, OP_FUA, 0, 4096);
        scripted_file_end(e.disk, engine_reach(&e, "barrier"), errors[i]);
        engine_start(&e, &other, OP_FLUSH, 0, 0, 0);
        engine_run(&e);
        assert_int_equal(write.op.result, -EIO);
        assert_int_equal(other.op.result, -EIO);
        assert_true(engine_said(&e, "writes are refused"));
        // A later barrier proves nothing about earlier writes; reads go on.
        engine_watch(&e);
        assert_int_equal(engine_flush(&e), -EIO);
        assert_int_equal(engine_write(&e, 0, 4096, 2), -EIO);
        engine_expect(&e, CLUSTER - 512, 512, 1);
        assert_string_equal(e.order, "read-data.");
        assert_int_not_equal(image_finish(e.image, &err), 0);
        engine_free(&e);
    }
}

// Tables that waited for the sync after a failed barrier are not written: their data may be lost.
static void nothing_is_written_after_a_failed_barrier(void **state)
{
    struct request write, other;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &write, OP_WRITE, OP_FUA, CLUSTER, 4096);
    engine_hold(&e, "barrier");
    engine_start(&e, &other, OP_WRITE, OP_FUA, 2 * CLUSTER, 4096);
    engine_hold(&e, "barrier");
    assert_int_not_equal(engine_entry(&e, 2), 0);
    engine_watch(&e);
    scripted_file_end(e.disk, 0, -EIO);
    engine_run(&e);
    assert_int_equal(write.op.result, -EIO);
    assert_int_equal(other.op.result, -EIO);
    assert_int_equal(engine_count(&e, "l2"), 0);
    assert_int_equal(engine_count(&e, "barrier"), 0);
    engine_free(&e);
}

// A table write without space loses nothing: it is made again, and the need for a barrier stays.
static void a_sync_without_space_is_made_up_for(void **state)
{
    static const int errors[] = {-ENOSPC, -EDQUOT, -EFBIG, -ENOMEM};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct request write;
        struct engine e;

        begin(&e);
        engine_start(&e, &write, OP_WRITE, OP_FUA, CLUSTER, 4096);
        scripted_file_end(e.disk, engine_reach(&e, "l2"), errors[i]);
        engine_run(&e);
        assert_int_equal(write.op.result, errors[i]);
        assert_int_equal(e.image->latched_error, 0);
        assert_true(sync_needed(e.image));
        assert_true(e.image->syncs.demand.data);
        engine_watch(&e);
        assert_int_equal(engine_flush(&e), 0);
        assert_string_equal(e.order, "l2. barrier.");
        engine_end(&e);
    }
}

static void a_failed_table_is_latched(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &write, OP_WRITE, OP_FUA, CLUSTER, 4096);
    scripted_file_end(e.disk, engine_reach(&e, "l2"), -EIO);
    engine_run(&e);
    assert_int_equal(write.op.result, -EIO);
    assert_int_equal(e.image->latched_error, -EIO);
    engine_free(&e);
}

// A dirty bit whose first write failed is written again, whatever is on disk.
static void a_dirty_bit_that_failed_is_set_again(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_large);
    engine_start(&e, &write, OP_WRITE, OP_FUA, 0, 4096);
    scripted_file_end(e.disk, engine_reach(&e, "header"), -ENOSPC);
    engine_run(&e);
    assert_int_equal(write.op.result, -ENOSPC);
    assert_int_equal(e.image->dirty_bit, DIRTY_BIT_UNSURE);
    engine_watch(&e);
    assert_int_equal(engine_flush(&e), 0);
    assert_string_equal(e.order, "header. barrier. l2 l1.. barrier.");
    engine_end(&e);
}

// Refcounts without room: the dirty bit takes their place, before the tables.
static void without_room_for_refcounts_the_image_is_dirty(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    engine_begin(&e, &engine_small);
    engine_start(&e, &write, OP_WRITE, OP_FUA, 0, 512);
    scripted_file_end(e.disk, engine_reach(&e, "block"), -ENOSPC);
    engine_watch(&e);
    engine_run(&e);
    assert_int_equal(write.op.result, 0);
    assert_string_equal(e.order, "header. barrier. l2 l1.. barrier.");
    assert_true(engine_said(&e, "refcounts cannot be written"));
    assert_int_equal(e.image->dirty_bit, DIRTY_BIT_SET);
    engine_end(&e);
}

// Version 2 has no dirty bit to replace refcounts: the sync fails.
static void version_2_says_that_there_is_no_room(void **state)
{
    struct create_options create = engine_small;
    struct request write;
    struct engine e;

    (void)state;
    create.version = 2;
    engine_begin(&e, &create);
    engine_start(&e, &write, OP_WRITE, OP_FUA, 0, 512);
    scripted_file_end(e.disk, engine_reach(&e, "block"), -ENOSPC);
    engine_run(&e);
    assert_int_equal(write.op.result, -ENOSPC);
    assert_int_equal(engine_count(&e, "l2"), 0);
    assert_int_equal(engine_flush(&e), 0);
    engine_end(&e);
}

// The bytes at stake fall only after a sync that succeeds.
static void bytes_at_stake(void **state)
{
    struct request flush;
    struct engine e;

    (void)state;
    begin(&e);
    assert_int_equal(image_bytes_at_stake(e.image), 0);
    assert_int_equal(engine_write(&e, 0, 4096, 2), 0);
    assert_int_equal(engine_write(&e, CLUSTER, 512, 2), 0);
    assert_int_equal(image_bytes_at_stake(e.image), 4608);
    engine_start(&e, &flush, OP_FLUSH, 0, 0, 0);
    engine_reach(&e, "l2");
    assert_int_equal(image_bytes_at_stake(e.image), 4608);
    scripted_file_end(e.disk, 0, -ENOSPC);
    engine_run(&e);
    assert_int_equal(image_bytes_at_stake(e.image), 4608);
    assert_int_equal(engine_flush(&e), 0);
    assert_int_equal(image_bytes_at_stake(e.image), 0);
    engine_end(&e);
}

static char traced[2000];

static void keep_trace(void *context, const char *line)
{
    const char *state = strstr(line, ", state ");

    (void)context;
    assert_true(strlen(traced) + strlen(line) < sizeof(traced));
    if (strstr(line, " stage: ") && state)
        strcat(strcat(traced, state + strlen(", state ")), " ");
}

// Each stage is traced, in the order of the diagram.
static void stages_are_traced(void **state)
{
    struct engine e;

    (void)state;
    begin(&e);
    traced[0] = '\0';
    e.image->host.trace = keep_trace;
    assert_int_equal(engine_do(&e, OP_WRITE, OP_FUA, CLUSTER, 4096), 0);
    assert_string_equal(traced, "begin header refcounts prepared tables written durable ");
    engine_end(&e);
}

// ---- The rules as assertions (sync_check.c) -----------------------------------------------------

// Runs the assertions of a stage in a process of its own. Returns true where they hold.
static bool rules_hold(struct image *image, enum sync_state stage)
{
    pid_t child = fork();
    int status;

    assert_true(child >= 0);
    if (child == 0) {
        // The assertion's message is expected; a sanitizer's handler is not of interest.
        close(STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        assert_sync_state(image, stage, 0);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void a_broken_rule_stops_at_its_stage(void **state)
{
    struct request write;
    struct engine e;

    (void)state;
    begin(&e);
    engine_start(&e, &write, OP_WRITE, OP_FUA, CLUSTER, 4096);
    engine_reach(&e, "l2");
    struct sync *sync = e.image->sync;
    struct sync_facts facts = sync->facts;
    assert_true(rules_hold(e.image, SYNC_TABLES));
    // Rule 4: the dirty bit is not durable yet, or not even set.
    sync->facts.exposed = SYNC_WROTE_HEADER;
    assert_false(rules_hold(e.image, SYNC_TABLES));
    sync->facts.exposed = SYNC_WROTE_REFCOUNTS;
    assert_false(rules_hold(e.image, SYNC_TABLES));
    sync->facts = facts;
    e.image->dirty_bit = DIRTY_BIT_CLEAR;
    assert_false(rules_hold(e.image, SYNC_TABLES));
    e.image->dirty_bit = DIRTY_BIT_SET;
    // Rule 2: data that must be durable before its entry is not.
    sync->demand.barrier = true;
    sync->facts.barriers = 0;
    assert_false(rules_hold(e.image, SYNC_TABLES));
    sync->demand.barrier = false;
    // Rule 1: tables were written, and nobody has made a barrier since.
    sync->facts.exposed = SYNC_WROTE_TABLES;
    assert_false(rules_hold(e.image, SYNC_DURABLE));
    sync->facts.exposed = 0;
    assert_true(rules_hold(e.image, SYNC_DURABLE));
    // A second sync does not begin beside it.
    assert_false(rules_hold(e.image, SYNC_BEGIN));
    sync->facts = facts;
    engine_run(&e);
    engine_end(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_write),
        cmocka_unit_test(fresh_space_over_zeros_needs_one_barrier),
        cmocka_unit_test(used_space_needs_a_barrier_before_tables),
        cmocka_unit_test(data_in_place_needs_no_tables),
        cmocka_unit_test(refcounts_come_first_where_they_are_not_lazy),
        cmocka_unit_test(autoclear_bits_go_first),
        cmocka_unit_test(two_fua_writes_share_a_barrier),
        cmocka_unit_test(a_write_behind_a_barrier_needs_another),
        cmocka_unit_test(a_flush_joins_the_sync_that_covers_it),
        cmocka_unit_test(a_flush_after_new_data_takes_the_next_sync),
        cmocka_unit_test(tables_are_written_from_copies),
        cmocka_unit_test(a_change_behind_the_first_barrier_is_not_written),
        cmocka_unit_test(a_failed_barrier_is_latched),
        cmocka_unit_test(nothing_is_written_after_a_failed_barrier),
        cmocka_unit_test(a_sync_without_space_is_made_up_for),
        cmocka_unit_test(a_failed_table_is_latched),
        cmocka_unit_test(a_dirty_bit_that_failed_is_set_again),
        cmocka_unit_test(without_room_for_refcounts_the_image_is_dirty),
        cmocka_unit_test(version_2_says_that_there_is_no_room),
        cmocka_unit_test(bytes_at_stake),
        cmocka_unit_test(a_broken_rule_stops_at_its_stage),
        cmocka_unit_test(stages_are_traced),
    };

    return cmocka_run_group_tests_name("sync", tests, NULL, NULL);
}
