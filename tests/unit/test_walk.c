// SPDX-License-Identifier: Apache-2.0
// test_walk.c: a walk over all references of an image: each of them once, with its count, and each
// kind of fault.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/format/bitmap_directory.h"
#include "qcow2/format/format.h"
#include "qcow2/walk/walk.h"
#include "tests/unit/engine.h"

#define CLUSTER 65536u
#define SEEN_MAX 64

// The findings of a walk.
struct finding {
    struct walk walk;
    struct header header;
    struct snapshot_table snapshots;
    struct bitmap_directory bitmaps;
    struct walk_reference references[SEEN_MAX];
    size_t count;
    struct walk_problem problems[SEEN_MAX];
    size_t problem_count;
    uint64_t progress; // the last that was told
    unsigned done;
    int result;
    // The reference, counted from 1, whose visit ends the walk; 0: none.
    size_t refuse;
};

static int note_reference(void *context, const struct walk_reference *reference)
{
    struct finding *f = context;

    assert_true(f->count < SEEN_MAX);
    assert_true(reference->clusters > 0);
    f->references[f->count++] = *reference;
    return f->count == f->refuse ? -ENOMEM : 0;
}

static int note_problem(void *context, const struct walk_problem *problem)
{
    struct finding *f = context;

    assert_true(f->problem_count < SEEN_MAX);
    f->problems[f->problem_count++] = *problem;
    return f->refuse == SIZE_MAX ? -ENOMEM : 0;
}

static void note_progress(void *context, uint64_t done, uint64_t total)
{
    struct finding *f = context;

    assert_true(done < total);
    f->progress = total;
}

static void note_done(void *context, int result)
{
    struct finding *f = context;

    f->done++;
    f->result = result;
}

static const struct walk_visitor visitor = {
    .reference = note_reference, .problem = note_problem, .progress = note_progress};

// Walks the file and returns the result. Keeps f->refuse.
static int walk(struct scripted_file *disk, unsigned parts, struct finding *f)
{
    size_t refuse = f->refuse;
    struct error err;

    *f = (struct finding){.refuse = refuse};
    assert_int_equal(header_read_any(&disk->file, &f->header, &err), 0);
    assert_int_equal(snapshot_table_read(&disk->file, &f->header, &f->snapshots, &err), 0);
    assert_int_equal(bitmap_directory_read(&disk->file, &f->header, &f->bitmaps, &err), 0);
    f->walk = (struct walk){.file = &disk->file,
                            .header = &f->header,
                            .snapshots = &f->snapshots,
                            .bitmaps = &f->bitmaps,
                            .visitor = &visitor,
                            .context = f,
                            .parts = parts,
                            .done = note_done};
    walk_start(&f->walk);
    assert_int_equal(f->count, 0);
    scripted_file_run(disk);
    assert_int_equal(f->done, 1);
    snapshot_table_free(&f->snapshots);
    bitmap_directory_free(&f->bitmaps);
    return f->result;
}

// Returns the references of a kind: the sum of clusters times count.
static uint64_t counted(const struct finding *f, enum walk_kind kind)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < f->count; i++) {
        if (f->references[i].kind == kind)
            sum += f->references[i].clusters * f->references[i].count;
    }
    return sum;
}

static const struct walk_reference *first_of(const struct finding *f, enum walk_kind kind)
{
    for (size_t i = 0; i < f->count; i++) {
        if (f->references[i].kind == kind)
            return &f->references[i];
    }
    fail_msg("no reference of kind %d", kind);
    return NULL;
}

// Guest clusters 0 to 3, 9, and a zero cluster with a host cluster at 20. The image is closed;
// tests patch its tables on disk.
static void begin(struct engine *e, bool snapshot)
{
    struct error err;

    engine_begin(e, &engine_large);
    assert_int_equal(engine_write(e, 0, 4 * CLUSTER, 1), 0);
    assert_int_equal(engine_write(e, 9 * CLUSTER, CLUSTER, 1), 0);
    assert_int_equal(engine_do(e, OP_WRITE_ZEROES, OP_NO_HOLE, 20 * CLUSTER, CLUSTER), 0);
    if (snapshot)
        engine_snapshot(e);
    assert_int_equal(image_finish(e->image, &err), 0);
}

static uint8_t *l2_of(const struct engine *e)
{
    uint64_t l1 = format_get64(e->disk->bytes + e->image->header.l1_offset);

    return e->disk->bytes + (l1 & FORMAT_L1_OFFSET_MASK);
}

static void each_reference_once(void **state)
{
    static struct finding f;
    struct engine e;

    (void)state;
    begin(&e, false);
    f.refuse = 0;
    assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
    assert_int_equal(f.problem_count, 0);
    assert_int_equal(counted(&f, WALK_HEADER), 1);
    assert_int_equal(counted(&f, WALK_L1), 1);
    assert_int_equal(counted(&f, WALK_L2), 1);
    assert_int_equal(counted(&f, WALK_DATA), 6);
    assert_int_equal(counted(&f, WALK_REFCOUNT_TABLE), 1);
    assert_int_equal(counted(&f, WALK_REFCOUNT_BLOCK), 1);
    // Together the references cover the file.
    uint64_t sum = 0;
    for (size_t i = 0; i < f.count; i++)
        sum += f.references[i].clusters;
    assert_int_equal(sum * CLUSTER, e.disk->size);
    // Four in a row are one run.
    const struct walk_reference *run = first_of(&f, WALK_DATA);
    assert_int_equal(run->clusters, 4);
    assert_int_equal(run->entries, 4);
    assert_int_equal(run->guest, 0);
    assert_true(run->copied);
    assert_int_equal(run->entry, l2_of(&e) - e.disk->bytes);
    assert_int_equal(f.walk.allocated_clusters, 6);
    assert_int_equal(f.progress, 1);
    // A walk visits only the requested parts.
    assert_int_equal(walk(e.disk, WALK_MAPPING, &f), 0);
    assert_int_equal(counted(&f, WALK_HEADER) + counted(&f, WALK_REFCOUNT_TABLE), 0);
    engine_free(&e);
}

// A table that two L1 tables share is read once, and counts twice.
static void shared_tables_count_for_each(void **state)
{
    static struct finding f;
    struct engine e;

    (void)state;
    begin(&e, true);
    f.refuse = 0;
    assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
    assert_int_equal(counted(&f, WALK_L1), 2);
    assert_int_equal(counted(&f, WALK_SNAPSHOT_TABLE), 1);
    assert_int_equal(counted(&f, WALK_DATA), 12);
    const struct walk_reference *data = first_of(&f, WALK_DATA);
    assert_int_equal(data->count, 2);
    assert_int_equal(data->active, 1);
    assert_false(data->copied);
    // Without snapshots it counts once.
    assert_int_equal(walk(e.disk, WALK_MAPPING, &f), 0);
    assert_int_equal(counted(&f, WALK_DATA), 6);
    engine_free(&e);
}

static void faults_of_l2_entries(void **state)
{
    static struct finding f;
    const struct {
        uint64_t raw;
        enum walk_fault fault;
        uint64_t references; // clusters that are counted nevertheless
    } rows[] = {
        {(2 * CLUSTER) | 1ull << 56, WALK_RESERVED_BITS, 1},
        {2 * CLUSTER + 512, WALK_MISALIGNED, 2},
        {FORMAT_COMPRESSED | FORMAT_COPIED | (2 * CLUSTER), WALK_COMPRESSED_FLAGS, 1},
        {1ull << 54, WALK_FAR, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct engine e;

        begin(&e, false);
        format_put64(l2_of(&e) + 8 * 50, rows[i].raw);
        f.refuse = 0;
        assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
        assert_int_equal(f.problem_count, 1);
        assert_int_equal(f.problems[0].fault, rows[i].fault);
        assert_int_equal(f.problems[0].guest, 50 * CLUSTER);
        assert_int_equal(f.problems[0].value, rows[i].raw);
        assert_int_equal(counted(&f, WALK_DATA) + counted(&f, WALK_COMPRESSED),
                         6 + rows[i].references);
        // References that no sound image has are visited on request.
        if (rows[i].fault == WALK_FAR) {
            assert_int_equal(walk(e.disk, WALK_ALL | WALK_ABSURD, &f), 0);
            assert_int_equal(counted(&f, WALK_DATA), 7);
            assert_int_equal(f.problem_count, 0);
        }
        // An error of the visitor ends the walk.
        f.refuse = SIZE_MAX;
        if (rows[i].fault != WALK_FAR)
            assert_int_equal(walk(e.disk, WALK_ALL, &f), -ENOMEM);
        engine_free(&e);
    }
}

// Version 2 has no zero flag.
static void a_zero_flag_in_version_2(void **state)
{
    static struct finding f;
    struct engine e;

    (void)state;
    begin(&e, false);
    format_put32(e.disk->bytes + FORMAT_HEADER_VERSION, 2);
    f.refuse = 0;
    assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
    assert_int_equal(f.problem_count, 1);
    assert_int_equal(f.problems[0].fault, WALK_ZERO_FLAG_V2);
    assert_int_equal(counted(&f, WALK_DATA), 6);
    engine_free(&e);
}

static void faults_of_l1_entries(void **state)
{
    static struct finding f;
    static const struct {
        uint64_t or, and;
        enum walk_fault fault;
        uint64_t tables;
    } rows[] = {
        {1, UINT64_MAX, WALK_RESERVED_BITS, 1},
        {512, UINT64_MAX, WALK_MISALIGNED, 2},
        {0, FORMAT_COPIED, WALK_COPIED_NOTHING, 0},
        {1ull << 50, UINT64_MAX, WALK_FAR, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct engine e;

        begin(&e, false);
        uint8_t *l1 = e.disk->bytes + e.image->header.l1_offset;
        format_put64(l1, (format_get64(l1) & rows[i].and) | rows[i].or);
        f.refuse = 0;
        assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
        assert_int_equal(f.problem_count, 1);
        assert_int_equal(f.problems[0].fault, rows[i].fault);
        assert_int_equal(f.problems[0].kind, WALK_L2);
        assert_int_equal(counted(&f, WALK_L2), rows[i].tables);
        // A table at an impossible place is not read.
        assert_int_equal(counted(&f, WALK_DATA), rows[i].fault == WALK_RESERVED_BITS ? 6 : 0);
        engine_free(&e);
    }
}

static void faults_of_the_refcount_table(void **state)
{
    static struct finding f;
    static const struct {
        uint64_t raw;
        enum walk_fault fault;
    } rows[] = {{CLUSTER | 1, WALK_RESERVED_BITS},
                {CLUSTER + 512, WALK_MISALIGNED},
                {1ull << 50, WALK_FAR}};

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct engine e;

        begin(&e, false);
        format_put64(e.disk->bytes + e.image->header.refcount_table_offset + 8 * 3, rows[i].raw);
        f.refuse = 0;
        assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
        assert_int_equal(f.problem_count, 1);
        assert_int_equal(f.problems[0].fault, rows[i].fault);
        assert_int_equal(f.problems[0].kind, WALK_REFCOUNT_BLOCK);
        assert_int_equal(counted(&f, WALK_REFCOUNT_BLOCK), 1);
        engine_free(&e);
    }
}

// A snapshot's L1 table that lies behind the end, over another one, or at an impossible place.
static void snapshots_whose_l1_table_cannot_be(void **state)
{
    static struct finding f;

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct engine e;

        begin(&e, true);
        uint8_t *entry = e.disk->bytes + e.image->header.snapshot_offset;
        uint64_t l1 = e.image->header.l1_offset;
        format_put64(entry, i == 0 ? e.disk->size : i == 1 ? l1 : 512);
        if (i == 1) // the disk's own table, but longer
            format_put32(entry + FORMAT_SNAPSHOT_L1_SIZE, 9);
        f.refuse = 0;
        assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
        assert_true(f.problem_count >= 1);
        assert_int_equal(f.problems[0].fault, WALK_SNAPSHOT_L1);
        assert_int_equal(f.problems[0].active, 0);
        assert_int_equal(counted(&f, WALK_DATA), 6);
        engine_free(&e);
    }
}

// A snapshot that has the L1 table of the disk: its references count twice.
static void equal_l1_tables_are_read_once(void **state)
{
    static struct finding f;
    struct engine e;

    (void)state;
    begin(&e, true);
    format_put64(e.disk->bytes + e.image->header.snapshot_offset, e.image->header.l1_offset);
    f.refuse = 0;
    assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
    assert_int_equal(first_of(&f, WALK_L1)->count, 2);
    assert_int_equal(first_of(&f, WALK_L2)->count, 2);
    assert_int_equal(counted(&f, WALK_DATA), 12);
    engine_free(&e);
}

static void an_error_ends_it(void **state)
{
    static struct finding f;
    struct engine e;

    (void)state;
    begin(&e, true);
    f.refuse = 0;
    assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
    size_t all = f.count;
    for (size_t i = 1; i <= all; i++) {
        f.refuse = i;
        assert_int_equal(walk(e.disk, WALK_ALL, &f), -ENOMEM);
        assert_int_equal(f.count, i);
    }
    f.refuse = 0;
    e.disk->fail_kind = FILE_READ;
    e.disk->fail_offset = (uint64_t)(l2_of(&e) - e.disk->bytes);
    e.disk->fail_length = 1;
    e.disk->fail_error = -EIO;
    assert_int_equal(walk(e.disk, WALK_ALL, &f), -EIO);
    e.disk->fail_length = 0;
    // Features that change the meaning of tables.
    uint8_t *bits = e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE;
    format_put64(bits, format_get64(bits) | HEADER_INCOMPATIBLE_EXTENDED_L2);
    assert_int_equal(walk(e.disk, WALK_ALL, &f), -ENOTSUP);
    engine_free(&e);
}

// The part of a structure that is near counts, the rest is told.
static void what_begins_near_and_ends_far_is_counted_in_part(void **state)
{
    static struct finding f;
    struct engine e;

    (void)state;
    begin(&e, false);
    // The last cluster that may be named, at no alignment: it reaches into the next one.
    uint64_t far = (e.disk->size / CLUSTER + (WALK_LOST_GROWTH_MAX >> 16)) * CLUSTER;
    format_put64(l2_of(&e) + 8 * 50, far - CLUSTER + 512);
    f.refuse = 0;
    assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
    assert_int_equal(f.problem_count, 2);
    assert_int_equal(f.problems[0].fault, WALK_MISALIGNED);
    assert_int_equal(f.problems[1].fault, WALK_FAR);
    assert_int_equal(counted(&f, WALK_DATA), 7);
    engine_free(&e);
}

// Disks without a byte have no L1 table to be read.
static void empty_disks(void **state)
{
    static struct finding f;
    struct engine e = {.disk = scripted_file_new()};
    struct create_options create = engine_large;

    (void)state;
    create.size = 0;
    scripted_file_create(e.disk, &create);
    f.refuse = 0;
    assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
    assert_int_equal(counted(&f, WALK_L2) + counted(&f, WALK_DATA), 0);
    assert_int_equal(counted(&f, WALK_HEADER), 1);
    e.disk->size_error = -EIO;
    assert_int_equal(walk(e.disk, WALK_ALL, &f), -EIO);
    engine_free(&e);
}

// Bitmaps: their directory, their tables and their clusters of bits; entries that name impossible
// places.
static void bitmaps_and_their_faults(void **state)
{
    static const struct {
        uint64_t entry;
        enum walk_fault fault;
        bool any;
        uint64_t clusters;
    } rows[] = {{0, 0, false, 2},
                {1, 0, false, 2}, // all ones, without a cluster
                {2 * CLUSTER, 0, false, 3},
                {2 * CLUSTER | 2, WALK_RESERVED_BITS, true, 3},
                {2 * CLUSTER + 512, WALK_MISALIGNED, true, 4}};

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        static struct finding f;
        struct engine e;

        begin(&e, false);
        engine_add_bitmap(&e);
        format_put64(e.disk->bytes + e.disk->size - CLUSTER, rows[i].entry);
        f.refuse = 0;
        assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
        assert_int_equal(f.problem_count, rows[i].any);
        if (rows[i].any)
            assert_int_equal(f.problems[0].fault, rows[i].fault);
        assert_int_equal(counted(&f, WALK_BITMAP), rows[i].clusters);
        f.refuse = SIZE_MAX;
        if (rows[i].any)
            assert_int_equal(walk(e.disk, WALK_ALL, &f), -ENOMEM);
        // A bitmap without a table.
        format_put32(e.disk->bytes + e.disk->size - 2 * CLUSTER + FORMAT_BITMAP_TABLE_SIZE, 0);
        f.refuse = 0;
        assert_int_equal(walk(e.disk, WALK_ALL, &f), 0);
        assert_int_equal(counted(&f, WALK_BITMAP), 1);
        engine_free(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_reference_once),
        cmocka_unit_test(shared_tables_count_for_each),
        cmocka_unit_test(faults_of_l2_entries),
        cmocka_unit_test(a_zero_flag_in_version_2),
        cmocka_unit_test(faults_of_l1_entries),
        cmocka_unit_test(faults_of_the_refcount_table),
        cmocka_unit_test(snapshots_whose_l1_table_cannot_be),
        cmocka_unit_test(equal_l1_tables_are_read_once),
        cmocka_unit_test(an_error_ends_it),
        cmocka_unit_test(what_begins_near_and_ends_far_is_counted_in_part),
        cmocka_unit_test(empty_disks),
        cmocka_unit_test(bitmaps_and_their_faults),
    };

    return cmocka_run_group_tests_name("walk", tests, NULL, NULL);
}
