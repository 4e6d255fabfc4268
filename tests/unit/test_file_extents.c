// SPDX-License-Identifier: Apache-2.0
// test_file_extents.c: block status of data that lies in holes of the file: zeros, until a write
// there.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/file_extents.h"
#include "qcow2/image.h"
#include "tests/unit/scripted_file.h"

#define CLUSTER 65536u
#define SIZE (4u << 20)

struct fixture {
    struct scripted_file *disk;
    struct image *image;
    struct extent extents[8];
    size_t count;
};

// An image whose clusters all have a place, in a hole of the file.
static void begin(struct fixture *f)
{
    struct create_options create = {.size = SIZE,
                                    .version = 3,
                                    .cluster_bits = 16,
                                    .refcount_order = 4,
                                    .lazy_refcounts = true,
                                    .preallocation = CREATE_PREALLOCATE_METADATA};
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};

    f->disk = scripted_file_new();
    f->image = scripted_image_new(f->disk, &create, &options);
}

static void end(struct fixture *f)
{
    struct error err;

    assert_int_equal(image_finish(f->image, &err), 0);
    image_close(f->image);
    scripted_file_free(f->disk);
}

static struct op status_op(struct fixture *f, uint64_t offset, uint64_t length, size_t max)
{
    return (struct op){.kind = OP_BLOCK_STATUS,
                       .offset = offset,
                       .length = length,
                       .extents = f->extents,
                       .max_extents = max};
}

static void ask(struct fixture *f, uint64_t offset, uint64_t length, size_t max)
{
    struct op op = status_op(f, offset, length, max);

    assert_int_equal(scripted_op(f->disk, f->image, &op), 0);
    f->count = op.extent_count;
}

static void expect(const struct fixture *f, size_t i, uint64_t length, bool zero)
{
    assert_true(i < f->count);
    assert_int_equal(f->extents[i].length, length);
    assert_int_equal(f->extents[i].zero, zero);
    assert_false(f->extents[i].hole);
}

static void write_at(struct fixture *f, uint64_t offset)
{
    assert_int_equal(scripted_write(f->disk, f->image, "x", offset, 1), 0);
}

static unsigned asked(const struct fixture *f)
{
    return f->disk->submitted[FILE_EXTENTS];
}

static void holes_are_zeros_and_remembered(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    ask(&f, 0, SIZE, 8);
    assert_int_equal(f.count, 1);
    expect(&f, 0, SIZE, true);
    assert_int_equal(asked(&f), 1);
    ask(&f, CLUSTER, 3 * CLUSTER, 8);
    expect(&f, 0, 3 * CLUSTER, true);
    assert_int_equal(asked(&f), 1);
    // A page of the file is data now; the other pages are unchanged.
    write_at(&f, 5 * CLUSTER + 5);
    ask(&f, 0, SIZE, 8);
    assert_int_equal(f.count, 3);
    expect(&f, 0, 5 * CLUSTER, true);
    expect(&f, 1, 4096, false);
    expect(&f, 2, SIZE - 5 * CLUSTER - 4096, true);
    end(&f);
}

// One extent that is as long as possible, from any number of look-ups.
static void one_extent(void **state)
{
    struct fixture f;

    (void)state;
    struct op zero = {
        .kind = OP_WRITE_ZEROES, .flags = OP_NO_HOLE, .offset = 2 * CLUSTER, .length = CLUSTER};

    begin(&f);
    write_at(&f, SIZE / 2);
    assert_int_equal(scripted_op(f.disk, f.image, &zero), 0);
    ask(&f, 0, SIZE, 1);
    assert_int_equal(f.count, 1);
    expect(&f, 0, SIZE / 2, true);
    ask(&f, SIZE / 2, SIZE / 2, 1);
    expect(&f, 0, 4096, false);
    end(&f);
}

struct waiting {
    struct op op;
    bool done;
};

static void note_done(struct op *op)
{
    ((struct waiting *)((char *)op - offsetof(struct waiting, op)))->done = true;
}

static void start(struct fixture *f, struct waiting *w, struct op op)
{
    *w = (struct waiting){.op = op};
    w->op.done = note_done;
    op_start(f->image, &w->op);
    scripted_file_turns(f->disk);
}

static void end_first(struct fixture *f, enum file_io_kind kind)
{
    size_t index = scripted_file_find(f->disk, kind);

    assert_true(index < f->disk->queued);
    scripted_file_end(f->disk, index, 0);
    scripted_file_turns(f->disk);
}

// A write may have been carried out before its end is known.
static void a_hole_that_is_being_written(void **state)
{
    struct waiting write, status;
    struct fixture f;

    (void)state;
    begin(&f);
    write_at(&f, 9 * CLUSTER);
    ask(&f, 0, SIZE, 8);
    unsigned before = asked(&f);
    start(&f, &write,
          (struct op){.kind = OP_WRITE, .offset = CLUSTER, .length = 1, .buf = (void *)"x"});
    start(&f, &status, status_op(&f, 0, 4 * CLUSTER, 8));
    assert_false(write.done || status.done);
    assert_int_equal(asked(&f), before + 1);
    scripted_file_run(f.disk);
    end(&f);
}

// A write and the question are in flight together. They may end in any order: once the write is
// answered its range is no hole any more.
static void a_write_beside_the_question(void **state)
{
    (void)state;
    for (int order = 0; order < 4; order++) {
        struct waiting write, status;
        struct op op = {.kind = OP_WRITE, .offset = CLUSTER, .length = 1, .buf = (void *)"x"};
        struct fixture f;

        begin(&f);
        // The place where the first change looks is known.
        write_at(&f, 9 * CLUSTER);
        if (order & 1)
            start(&f, &write, op);
        start(&f, &status, status_op(&f, 0, 4 * CLUSTER, 8));
        if (!(order & 1))
            start(&f, &write, op);
        end_first(&f, order & 2 ? FILE_EXTENTS : FILE_WRITE);
        end_first(&f, order & 2 ? FILE_WRITE : FILE_EXTENTS);
        scripted_file_run(f.disk);
        assert_true(write.done && status.done);
        ask(&f, 0, 4 * CLUSTER, 8);
        assert_int_equal(f.count, 3);
        expect(&f, 0, CLUSTER, true);
        expect(&f, 1, 4096, false);
        end(&f);
    }
}

// The host has looked before the write, and its answer comes late.
static void an_answer_of_the_past(void **state)
{
    struct waiting write, status;
    struct fixture f;

    (void)state;
    begin(&f);
    write_at(&f, 9 * CLUSTER);
    start(&f, &status, status_op(&f, 0, 4 * CLUSTER, 8));
    size_t index = scripted_file_find(f.disk, FILE_EXTENTS);
    struct file_io *question = f.disk->queue[index];
    assert_true(index < f.disk->queued);
    question->extents[0] = (struct file_extent){SIZE, FILE_EXTENT_HOLE};
    question->extent_count = 1;
    f.disk->queue[index] = f.disk->queue[--f.disk->queued];
    start(&f, &write,
          (struct op){.kind = OP_WRITE, .offset = CLUSTER, .length = 1, .buf = (void *)"x"});
    scripted_file_run(f.disk);
    assert_true(write.done && !status.done);
    file_io_complete(question, 0);
    scripted_file_run(f.disk);
    assert_true(status.done);
    f.count = status.op.extent_count;
    expect(&f, 0, CLUSTER, true);
    expect(&f, 1, 4096, false);
    end(&f);
}

static void a_host_that_cannot_tell(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    f.disk->fail_kind = FILE_EXTENTS;
    f.disk->fail_length = UINT64_MAX;
    f.disk->fail_error = -EIO;
    ask(&f, 0, SIZE, 8);
    expect(&f, 0, SIZE, false);
    assert_int_equal(asked(&f), FILE_EXTENTS_TRIES);
    f.disk->fail_error = -EOPNOTSUPP;
    ask(&f, 0, SIZE, 8);
    expect(&f, 0, SIZE, false);
    ask(&f, 0, SIZE, 8);
    assert_int_equal(asked(&f), FILE_EXTENTS_TRIES + 1);
    end(&f);
}

// If other programs also write, each request asks anew.
static void a_file_that_is_shared(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    f.disk->file.shared = true;
    ask(&f, 0, SIZE, 8);
    ask(&f, 0, SIZE, 8);
    assert_int_equal(asked(&f), 2);
    end(&f);
}

// ---- What is known of a file, against a table with an entry a block -----------------------------

#define BLOCKS 8000u
#define BLOCK KNOWN_EXTENTS_BLOCK
#define ANSWER_MAX 128

struct told {
    struct known_extents known;
    bool hole[BLOCKS];
};

// Answers for the host, out of the table, from a block on.
static void tell(struct told *t, uint64_t at)
{
    struct file_extent answer[ANSWER_MAX];
    size_t count = 0;

    known_extents_ask(&t->known, at * BLOCK);
    while (count < ANSWER_MAX && at < BLOCKS) {
        uint64_t first = at;

        while (at < BLOCKS && t->hole[at] == t->hole[first])
            at++;
        answer[count++] = (struct file_extent){
            (at - first) * BLOCK, t->hole[first] ? FILE_EXTENT_HOLE : FILE_EXTENT_DATA};
    }
    known_extents_answer(&t->known, answer, count);
}

static void look_up_or_change(struct told *t, unsigned *seed)
{
    uint64_t at = (unsigned)rand_r(seed) % BLOCKS;
    uint64_t count = 1 + (unsigned)rand_r(seed) % 20;
    uint64_t length = count * BLOCK;
    enum file_extent_kind kind;

    if (count > BLOCKS - at)
        count = BLOCKS - at;
    if (rand_r(seed) % 4 == 0) {
        bool hole = rand_r(seed) % 2;

        for (uint64_t i = at; i < at + count; i++)
            t->hole[i] = hole;
        known_extents_changed(&t->known, at * BLOCK + 1, (at + count) * BLOCK - 1);
        return;
    }
    if (!known_extents_find(&t->known, at * BLOCK, &length, &kind)) {
        tell(t, at);
        assert_true(known_extents_find(&t->known, at * BLOCK, &length, &kind));
    }
    assert_true(length > 0 && length % BLOCK == 0);
    for (uint64_t i = at; i < at + length / BLOCK && i < BLOCKS; i++)
        assert_int_equal(kind == FILE_EXTENT_HOLE, t->hole[i]);
    assert_true(t->known.count <= KNOWN_EXTENTS_MAX);
}

static void what_is_known_is_right_and_bounded(void **state)
{
    bool coarse = false;

    (void)state;
    for (unsigned seed = 1; seed <= 20; seed++) {
        static struct told t;
        unsigned draw = seed;

        memset(&t, 0, sizeof(t));
        for (size_t i = 0; i < BLOCKS; i++)
            t.hole[i] = (unsigned)rand_r(&draw) % (1 + seed % 3) == 0;
        for (int i = 0; i < 20000; i++)
            look_up_or_change(&t, &draw);
        coarse |= t.known.coarse;
        known_extents_changed(&t.known, 0, UINT64_MAX);
        assert_int_equal(t.known.count, 0);
    }
    assert_true(coarse);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holes_are_zeros_and_remembered),
        cmocka_unit_test(one_extent),
        cmocka_unit_test(a_hole_that_is_being_written),
        cmocka_unit_test(a_write_beside_the_question),
        cmocka_unit_test(an_answer_of_the_past),
        cmocka_unit_test(a_host_that_cannot_tell),
        cmocka_unit_test(a_file_that_is_shared),
        cmocka_unit_test(what_is_known_is_right_and_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
