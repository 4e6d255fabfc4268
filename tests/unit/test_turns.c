// SPDX-License-Identifier: Apache-2.0
// test_turns.c: work whose amount an image or a client decides is spread over many turns, so that
// others get theirs in between. Turns are counted; no clock is used.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "qcow2/base/bits.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/recover.h"
#include "qcow2/format/format.h"
#include "qcow2/format/header.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/request/request.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"
#include "qcow2/walk/scan.h"
#include "tests/unit/scripted_file.h"

#define CLUSTER_BITS 9
#define CLUSTER 512u

// An image of small clusters that was written once, so that its guard is ready.
struct fixture {
    struct scripted_file *disk;
    struct image *image;
};

static struct create_options create_options(uint64_t size)
{
    return (struct create_options){.size = size,
                                   .version = 3,
                                   .cluster_bits = CLUSTER_BITS,
                                   .refcount_order = 4,
                                   .lazy_refcounts = 1};
}

static struct fixture *new_fixture(const struct create_options *create)
{
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2, .unmap = true};
    struct fixture *f = calloc(1, sizeof(*f));
    unsigned char data[CLUSTER] = {1};

    assert_non_null(f);
    f->disk = scripted_file_new();
    f->image = scripted_image_new(f->disk, create, &options);
    assert_int_equal(scripted_write(f->disk, f->image, data, 0, CLUSTER), 0);
    return f;
}

static int set_up(void **state)
{
    struct create_options create = create_options(64u << 20);

    *state = new_fixture(&create);
    return 0;
}

// Refcount blocks that cover more clusters than one punch may take.
static int set_up_large_pages(void **state)
{
    struct create_options create = create_options(64u << 20);

    create.cluster_bits = 12;
    create.refcount_order = 0;
    *state = new_fixture(&create);
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    image_close(f->image);
    scripted_file_free(f->disk);
    free(f);
    return 0;
}

static int flush(struct fixture *f)
{
    return scripted_op(f->disk, f->image, &(struct op){.kind = OP_FLUSH});
}

static void note_done(struct op *op)
{
    op->buf = NULL;
}

// A read of data in memory, as another client would make it.
static void start_read(struct fixture *f, struct op *read, void *buf)
{
    *read = (struct op){
        .kind = OP_READ, .offset = 32u << 20, .length = CLUSTER, .buf = buf, .done = note_done};
    op_start(f->image, read);
}

// Takes so many clusters behind the others, as if a guest had them, and leaves no free cluster
// before them. Returns the first.
static uint64_t take_clusters(struct fixture *f, uint64_t count)
{
    struct refcounts *rc = f->image->refcounts;
    uint64_t in_page = refcount_page_size(&rc->geometry);
    uint64_t first = (f->image->alloc->fresh + in_page - 1) / in_page * in_page;

    for (uint64_t at = f->image->alloc->fresh; at < first; at++)
        assert_int_equal(refcounts_set(rc, at, 1), 0);
    for (uint64_t at = first; at < first + count; at += in_page) {
        uint64_t n = first + count - at < in_page ? first + count - at : in_page;

        assert_int_equal(refcounts_reach(rc, at), 0);
        assert_int_equal(refcounts_add(rc, at, n, 1), 0);
    }
    f->image->alloc->fresh = first + count;
    return first;
}

// Runs until the extents are durable, which is when the releaser begins.
static void start_release(struct fixture *f)
{
    sync_request(f->image);
    while (TAILQ_EMPTY(&f->image->quarantine->durable)) {
        if (!scripted_file_turn(f->disk))
            scripted_file_end(f->disk, 0, 0);
    }
}

static uint64_t waiting_clusters(const struct fixture *f)
{
    const struct quarantined *extent;
    uint64_t count = 0;

    TAILQ_FOREACH (extent, &f->image->quarantine->durable, link)
        count += extent->count;
    return count;
}

// ---- What a large discard gives up --------------------------------------------------------------

static void release_in_turns(struct fixture *f, uint64_t count)
{
    unsigned char buf[CLUSTER];
    struct op read;
    uint64_t left = waiting_clusters(f);
    size_t turns = 0;

    assert_int_equal(left, count);
    start_read(f, &read, buf);
    while (left > 0) {
        assert_true(scripted_file_turn(f->disk));
        assert_true(left - waiting_clusters(f) <= QUARANTINE_RELEASE_A_TURN);
        left = waiting_clusters(f);
        turns++;
        if (turns == 2)
            assert_null(read.buf);
    }
    assert_true(turns >= count / QUARANTINE_RELEASE_A_TURN);
    assert_true(quarantine_empty(f->image->quarantine));
}

static void one_large_extent_is_released_in_turns(void **state)
{
    struct fixture *f = *state;
    uint64_t count = 10 * QUARANTINE_RELEASE_A_TURN + 7;
    uint64_t first = take_clusters(f, count);

    quarantine_add(f->image, first, count);
    start_release(f);
    release_in_turns(f, count);
    assert_int_equal(refcounts_get(f->image->refcounts, first), 0);
    assert_int_equal(refcounts_get(f->image->refcounts, first + count - 1), 0);
    scripted_file_run(f->disk);
}

static void many_small_extents_are_released_in_turns(void **state)
{
    struct fixture *f = *state;
    uint64_t count = 3 * QUARANTINE_RELEASE_A_TURN;
    uint64_t first = take_clusters(f, 2 * count);

    for (uint64_t i = 0; i < count; i++)
        quarantine_add(f->image, first + 2 * i, 1);
    start_release(f);
    release_in_turns(f, count);
    scripted_file_run(f->disk);
}

// An entry of a broken image may give up far more clusters than there are, while recovery has not
// found the end.
static void what_was_never_counted_takes_turns_too(void **state)
{
    struct fixture *f = *state;
    uint64_t count = 3 * QUARANTINE_RELEASE_A_TURN;
    uint64_t fresh = f->image->alloc->fresh;
    uint64_t first = fresh + 1000;

    f->image->alloc->fresh = ALLOC_FRESH_UNKNOWN;
    for (uint64_t i = 0; i < count; i++)
        quarantine_add(f->image, first + 2 * i, 1);
    f->image->alloc->fresh = fresh;
    start_release(f);
    release_in_turns(f, count);
    scripted_file_run(f->disk);
}

// An op that finds no space while clusters are being released waits for them, however many turns
// that takes.
static void space_that_is_being_released_is_waited_for(void **state)
{
    struct fixture *f = *state;
    uint64_t count = 100 * QUARANTINE_RELEASE_A_TURN;
    uint64_t first = take_clusters(f, count);
    unsigned char data[CLUSTER] = {2};

    // All but the last ones are shared, so that releasing them frees nothing.
    for (uint64_t i = 0; i < count - 8; i++)
        assert_int_equal(refcounts_set(f->image->refcounts, first + i, 2), 0);
    assert_int_equal(flush(f), 0);
    quarantine_add(f->image, first, count);
    f->disk->fail_kind = FILE_ALLOCATE;
    f->disk->fail_offset = 0;
    f->disk->fail_length = UINT64_MAX / 2;
    f->disk->fail_error = -ENOSPC;
    f->image->alloc->reserve.end = f->image->alloc->fresh << CLUSTER_BITS;
    struct op write = {
        .kind = OP_WRITE, .offset = 8 * CLUSTER, .length = CLUSTER, .buf = data, .done = note_done};
    op_start(f->image, &write);
    // The disk is so quick that syncs take no more turns than they must.
    while (write.buf) {
        scripted_file_turn(f->disk);
        while (f->disk->queued > 0)
            scripted_file_end(f->disk, 0, 0);
    }
    assert_int_equal(write.result, 0);
    assert_int_equal(scripted_read(f->disk, f->image, data, 8 * CLUSTER, CLUSTER), 0);
    assert_int_equal(data[0], 2);
}

static void unreadable_refcounts_leak_and_are_told(void **state)
{
    struct fixture *f = *state;
    struct refcounts *rc = f->image->refcounts;
    uint64_t first = take_clusters(f, 100);
    uint64_t page = refcounts_page_index(rc, first);

    // Its block is on disk, and is not known.
    assert_int_equal(flush(f), 0);
    rc->table[page] = 64u << 20;
    refcount_page_free(&rc->pages[page]);
    refcount_page_init(&rc->pages[page], &rc->geometry, false);
    bits_clear(rc->dirty_bits, page);
    rc->dirty_pages--;
    f->disk->fail_kind = FILE_READ;
    f->disk->fail_offset = 64u << 20;
    f->disk->fail_length = CLUSTER;
    f->disk->fail_error = -EIO;

    quarantine_add(f->image, first, 100);
    assert_int_equal(flush(f), 0);
    scripted_file_run(f->disk);
    assert_true(quarantine_empty(f->image->quarantine));
    assert_non_null(strstr(f->disk->lines[f->disk->line_count - 1], "100 freed clusters leak"));
}

// ---- Holes --------------------------------------------------------------------------------------

static void holes_are_punched_in_pieces(void **state)
{
    struct fixture *f = *state;
    uint64_t count = 3 * PUNCH_CLUSTERS_MAX;
    uint64_t first = take_clusters(f, count);
    unsigned before = f->disk->submitted[FILE_PUNCH];

    punch_add(f->image, first, count);
    for (uint64_t i = 0; i < count; i++)
        assert_int_equal(refcounts_set(f->image->refcounts, first + i, 0), 0);
    punch_all(f->image);
    while (!punch_idle(f->image->punch)) {
        if (scripted_file_turn(f->disk))
            continue;
        assert_int_equal(f->disk->queue[0]->kind, FILE_PUNCH);
        assert_true(f->disk->queue[0]->length >> 12 <= PUNCH_CLUSTERS_MAX);
        scripted_file_end(f->disk, 0, 0);
    }
    assert_true(f->disk->submitted[FILE_PUNCH] - before >= 3);
}

// Clusters that were taken again, and a host that cannot punch.
static void extents_are_passed_over_in_turns(void **state)
{
    struct fixture *f = *state;
    uint64_t count = 5 * PUNCH_EXTENTS_A_TURN;
    uint64_t first = take_clusters(f, 2 * count);

    for (int round = 0; round < 2; round++) {
        for (uint64_t i = 0; i < count; i++)
            punch_add(f->image, first + 2 * i, 1);
        punch_all(f->image);
        f->image->punch->enabled = round == 0;
        assert_true(scripted_file_turns(f->disk) >= count / PUNCH_EXTENTS_A_TURN);
        assert_true(punch_idle(f->image->punch));
        f->image->punch->enabled = true;
    }
}

// ---- Metadata, at the first write ---------------------------------------------------------------

static void metadata_is_collected_in_turns(void **state)
{
    struct create_options create = create_options(8ull << 30);
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    struct fixture f = {.disk = scripted_file_new()};
    unsigned char data[CLUSTER] = {3}, buf[CLUSTER];
    struct op write = {.kind = OP_WRITE, .length = CLUSTER, .buf = data, .done = note_done};
    struct op read;
    size_t turns = 0;

    (void)state;
    f.image = scripted_image_new(f.disk, &create, &options);
    uint64_t entries = f.image->l1.size + f.image->refcounts->table_size;
    assert_true(entries > 10 * GUARD_ENTRIES_A_TURN);
    op_start(f.image, &write);
    start_read(&f, &read, buf);
    while (f.image->guard->state == GUARD_COLLECTING) {
        uint64_t before = f.image->guard->next;

        assert_true(scripted_file_turn(f.disk));
        assert_true(f.image->guard->next - before <= GUARD_ENTRIES_A_TURN);
        if (++turns == 3)
            assert_null(read.buf);
    }
    assert_true(turns >= entries / GUARD_ENTRIES_A_TURN);
    scripted_file_run(f.disk);
    assert_null(write.buf);
    assert_int_equal(write.result, 0);
    assert_true(f.image->guard->state == GUARD_READY);
    image_close(f.image);
    scripted_file_free(f.disk);
}

// A refcount block that is placed meanwhile is known, and does not count as a table that overlaps
// itself.
static void what_comes_meanwhile_is_known(void **state)
{
    struct create_options create = create_options(8ull << 30);
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    struct fixture f = {.disk = scripted_file_new()};
    unsigned char data[CLUSTER] = {3};
    struct op write = {.kind = OP_WRITE, .length = CLUSTER, .buf = data, .done = note_done};

    (void)state;
    f.image = scripted_image_new(f.disk, &create, &options);
    struct refcounts *rc = f.image->refcounts;
    assert_int_equal(refcounts_reach(rc, 1 << 22), 0);
    op_start(f.image, &write);
    while (f.image->guard->next == 0)
        assert_true(scripted_file_turn(f.disk));
    // An entry that was looked at, and one that is still to be.
    uint64_t pages[] = {1, rc->table_size - 1};
    assert_true(f.image->guard->next > pages[0] && f.image->guard->next < pages[1]);
    for (size_t i = 0; i < 2; i++) {
        uint64_t offset = (f.image->alloc->fresh + 100 + i) << CLUSTER_BITS;

        refcounts_set_block(rc, pages[i], offset);
        assert_int_equal(guard_add(f.image, offset), 0);
    }
    scripted_file_run(f.disk);
    assert_true(f.image->guard->state == GUARD_READY);
    assert_int_equal(f.image->latched_error, 0);
    for (size_t i = 0; i < 2; i++)
        assert_non_null(guard_hit(f.image, rc->table[pages[i]], 1));
    assert_int_equal(write.result, 0);
    image_close(f.image);
    scripted_file_free(f.disk);
}

// ---- Tables and refcounts -----------------------------------------------------------------------

#define RANGES 12

struct counted {
    struct scan scan;
    size_t named, taken;
    bool ended;
};

static bool name_range(void *context, struct scan_range *range)
{
    struct counted *c = context;

    *range = (struct scan_range){.offset = c->named * 4096, .length = 4096, .tag = c->named};
    return c->named++ < RANGES;
}

static int take_range(void *context, const struct scan_range *range, const uint8_t *bytes)
{
    struct counted *c = context;

    (void)bytes;
    assert_int_equal(range->tag, c->taken++);
    return 0;
}

static void scan_ended(void *context, int result)
{
    struct counted *c = context;

    assert_int_equal(result, 0);
    c->ended = true;
}

// The first range arrives last: the turn does not take all ranges behind it.
static void ranges_are_taken_one_a_turn(void **state)
{
    struct scripted_file *disk = scripted_file_new();
    struct counted c = {
        .scan = {.file = &disk->file, .next = name_range, .take = take_range, .done = scan_ended}};

    (void)state;
    c.scan.context = &c;
    scan_start(&c.scan);
    scripted_file_turns(disk);
    // Asks for the holes, and gets no answer.
    assert_int_equal(disk->queue[0]->kind, FILE_EXTENTS);
    scripted_file_end(disk, 0, -EOPNOTSUPP);
    scripted_file_turns(disk);
    assert_int_equal(disk->queued, RANGES);
    while (disk->queued > 0)
        scripted_file_end(disk, disk->queued - 1, 0);
    while (!c.ended) {
        size_t before = c.taken;

        assert_true(scripted_file_turn(disk));
        assert_true(c.taken <= before + 1);
    }
    assert_int_equal(c.taken, RANGES);
    assert_true(runq_empty(&disk->runq));
    scripted_file_free(disk);
}

// A dirty image with as many refcount blocks as a page of its table names, each of them in the
// file.
static void old_refcount_blocks_are_claimed_in_turns(void **state)
{
    struct create_options create = create_options(64u << 20);
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    struct scripted_file *disk = scripted_file_new();
    const uint64_t blocks = 3 * RECOVER_PIECES_A_TURN;
    uint64_t first;

    (void)state;
    scripted_file_create(disk, &create);
    // The table and its blocks lie behind everything else.
    first = (disk->size + CLUSTER - 1) / CLUSTER + 1000;
    uint64_t table = first + blocks;
    for (uint64_t i = 0; i < blocks; i++)
        format_put64(disk->bytes + (table << CLUSTER_BITS) + i * 8, (first + i) << CLUSTER_BITS);
    format_put64(disk->bytes + FORMAT_HEADER_REFCOUNT_TABLE_OFFSET, table << CLUSTER_BITS);
    format_put32(disk->bytes + FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS, blocks * 8 / CLUSTER);
    disk->bytes[FORMAT_HEADER_INCOMPATIBLE + 7] |= HEADER_INCOMPATIBLE_DIRTY;
    disk->size = (table << CLUSTER_BITS) + blocks * 8;
    // And a block that is not in the file.
    format_put64(disk->bytes + (table << CLUSTER_BITS), 2ull << 30);

    struct image_host host = {0};
    struct image *image;
    struct error err;
    assert_int_equal(image_open(&image, &disk->file, &options, &host, &err), 0);
    size_t turns = 0;
    while (image->recovery->running) {
        uint64_t before = image->recovery->next_page;

        if (!scripted_file_turn(disk))
            scripted_file_end(disk, 0, 0);
        assert_true(image->recovery->next_page - before <= RECOVER_PIECES_A_TURN);
        turns += image->recovery->next_page != before;
    }
    assert_true(turns >= 3);
    assert_int_equal(image->recovery->error, 0);
    assert_int_equal(image->refcounts->table[0], 0);
    assert_int_equal(image->refcounts->table[1], (first + 1) << CLUSTER_BITS);
    assert_true(disk->size <= (table << CLUSTER_BITS) + blocks * 8);
    image_close(image);
    scripted_file_free(disk);
}

// A read of very many clusters that need no wait.
static void zeros_are_read_in_turns(void **state)
{
    struct fixture *f = *state;
    const uint64_t length = 8u << 20;
    unsigned char *buf = malloc(length), small[CLUSTER];
    struct op zero = {.kind = OP_WRITE_ZEROES, .length = CLUSTER};
    struct op long_read = {.kind = OP_READ, .length = length, .buf = buf, .done = note_done};
    struct op read;

    assert_non_null(buf);
    // Every other cluster has a host cluster, so that no two neighbours are alike.
    for (uint64_t at = 0; at < length; at += 2 * CLUSTER) {
        zero.offset = at;
        zero.flags = OP_NO_HOLE;
        assert_int_equal(scripted_op(f->disk, f->image, &zero), 0);
    }
    op_start(f->image, &long_read);
    start_read(f, &read, small);
    size_t turns = 0;
    while (long_read.buf) {
        if (!scripted_file_turn(f->disk))
            scripted_file_end(f->disk, 0, 0);
        if (turns++ == 2)
            assert_null(read.buf);
    }
    assert_int_equal(long_read.result, 0);
    assert_true(turns >= length / CLUSTER / 512);
    free(buf);
}

// Clusters behind the end that count as used are skipped by the bits of a page.
static void leaks_behind_the_end_are_passed_over(void **state)
{
    struct fixture *f = *state;
    struct refcounts *rc = f->image->refcounts;
    unsigned char data[CLUSTER] = {4};
    uint64_t fresh = f->image->alloc->fresh;
    uint64_t first = take_clusters(f, 100000);

    f->image->alloc->fresh = fresh;
    assert_int_equal(scripted_write(f->disk, f->image, data, 10 << 20, CLUSTER), 0);
    assert_true(f->image->alloc->fresh > first + 100000);
    assert_int_equal(refcounts_get(rc, first), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_large_extent_is_released_in_turns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(many_small_extents_are_released_in_turns, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_was_never_counted_takes_turns_too, set_up, tear_down),
        cmocka_unit_test_setup_teardown(space_that_is_being_released_is_waited_for, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(unreadable_refcounts_leak_and_are_told, set_up, tear_down),
        cmocka_unit_test_setup_teardown(holes_are_punched_in_pieces, set_up_large_pages, tear_down),
        cmocka_unit_test_setup_teardown(extents_are_passed_over_in_turns, set_up, tear_down),
        cmocka_unit_test(ranges_are_taken_one_a_turn),
        cmocka_unit_test(old_refcount_blocks_are_claimed_in_turns),
        cmocka_unit_test_setup_teardown(zeros_are_read_in_turns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(leaks_behind_the_end_are_passed_over, set_up, tear_down),
        cmocka_unit_test(metadata_is_collected_in_turns),
        cmocka_unit_test(what_comes_meanwhile_is_known),
    };

    return cmocka_run_group_tests_name("turns", tests, NULL, NULL);
}
