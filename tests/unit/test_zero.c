// SPDX-License-Identifier: Apache-2.0
// test_zero.c: write zeroes with NO_HOLE: zero clusters that keep a host cluster, and writes into
// those.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <errno.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/core/image_state.h"
#include "qcow2/format/format.h"
#include "qcow2/image.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/refcount.h"
#include "tests/unit/scripted_file.h"

#define CLUSTER 65536u

struct fixture {
    struct scripted_file *disk;
    struct image *image;
};

static void begin(struct fixture *f)
{
    struct create_options create = {.size = 1 << 20,
                                    .version = 3,
                                    .cluster_bits = 16,
                                    .refcount_order = 4,
                                    .lazy_refcounts = true};
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

static void zero(struct fixture *f, uint64_t offset, uint64_t length, unsigned flags)
{
    struct op op = {.kind = OP_WRITE_ZEROES, .flags = flags, .offset = offset, .length = length};

    assert_int_equal(scripted_op(f->disk, f->image, &op), 0);
}

static void flush(struct fixture *f)
{
    assert_int_equal(scripted_op(f->disk, f->image, &(struct op){.kind = OP_FLUSH}), 0);
}

// The entry of a guest cluster, as it is on disk.
static uint64_t entry_of(const struct fixture *f, uint64_t cluster)
{
    uint64_t l1 = format_get64(f->disk->bytes + f->image->header.l1_offset);

    return format_get64(f->disk->bytes + (l1 & FORMAT_L1_OFFSET_MASK) + 8 * cluster);
}

static void expect_zero_cluster(const struct fixture *f, uint64_t cluster)
{
    uint64_t entry = entry_of(f, cluster);

    assert_true(entry & FORMAT_L2_ZERO);
    assert_true(entry & FORMAT_COPIED);
    assert_int_not_equal(entry & FORMAT_L2_OFFSET_MASK, 0);
}

static void expect_bytes(struct fixture *f, uint64_t offset, size_t length, int byte)
{
    static unsigned char found[CLUSTER];

    assert_int_equal(scripted_read(f->disk, f->image, found, offset, length), 0);
    for (size_t i = 0; i < length; i++)
        assert_int_equal(found[i], byte);
}

static void space_is_kept_and_nothing_written(void **state)
{
    struct extent extents[4];
    struct op status = {
        .kind = OP_BLOCK_STATUS, .length = 1 << 20, .extents = extents, .max_extents = 4};
    struct fixture f;

    (void)state;
    begin(&f);
    unsigned writes = f.disk->submitted[FILE_WRITE];
    zero(&f, 0, 1 << 20, OP_NO_HOLE);
    assert_int_equal(f.disk->submitted[FILE_WRITE], writes);
    assert_int_equal(f.disk->submitted[FILE_ZERO], 0);
    assert_int_equal(scripted_op(f.disk, f.image, &status), 0);
    assert_int_equal(status.extent_count, 1);
    assert_true(extents[0].zero && !extents[0].hole);
    flush(&f);
    for (uint64_t cluster = 0; cluster < 16; cluster++)
        expect_zero_cluster(&f, cluster);
    // A write now finds its place reserved.
    unsigned reservations = f.disk->submitted[FILE_ALLOCATE];
    uint64_t fresh = f.image->alloc->fresh;
    assert_int_equal(scripted_write(f.disk, f.image, "x", 3 * CLUSTER + 7, 1), 0);
    assert_int_equal(f.disk->submitted[FILE_ALLOCATE], reservations);
    assert_int_equal(f.image->alloc->fresh, fresh);
    end(&f);
}

static bool flushed;

static void note_flushed(struct op *op)
{
    (void)op;
    flushed = true;
}

// Flushes. Returns true when a barrier ended between the last data and the first write of a table.
static bool flush_has_barrier_before_tables(struct fixture *f)
{
    struct op op = {.kind = OP_FLUSH, .done = note_flushed};
    bool barrier = false, before = false, tables = false;

    flushed = false;
    op_start(f->image, &op);
    while (!flushed) {
        if (scripted_file_turn(f->disk))
            continue;
        const struct file_io *io = f->disk->queue[0];
        // A write behind the header is one of a table: the data is written already.
        if (io->kind == FILE_WRITE && io->offset >= CLUSTER && !tables) {
            tables = true;
            before = barrier;
        }
        barrier |= io->kind == FILE_DATASYNC;
        scripted_file_end(f->disk, 0, 0);
    }
    assert_true(tables);
    return before;
}

// A guest's first byte in a cluster that holds old bytes: zeros are written around it, and both are
// durable before the entry loses its ZERO flag.
static void old_bytes_do_not_come_back(void **state)
{
    static unsigned char data[CLUSTER];
    struct fixture f;

    (void)state;
    memset(data, 0x11, sizeof(data));
    begin(&f);
    assert_int_equal(scripted_write(f.disk, f.image, data, 0, sizeof(data)), 0);
    flush(&f);
    uint64_t host = entry_of(&f, 0) & FORMAT_L2_OFFSET_MASK;
    zero(&f, 0, CLUSTER, OP_NO_HOLE);
    // Zeros need no barrier of their own.
    assert_false(flush_has_barrier_before_tables(&f));
    assert_int_equal(entry_of(&f, 0), host | FORMAT_L2_ZERO | FORMAT_COPIED);
    assert_int_equal(f.disk->bytes[host + 5], 0x11);
    expect_bytes(&f, 0, CLUSTER, 0);

    assert_int_equal(scripted_write(f.disk, f.image, data, 5, 1), 0);
    expect_bytes(&f, 0, 5, 0);
    expect_bytes(&f, 5, 1, 0x11);
    expect_bytes(&f, 6, CLUSTER - 6, 0);
    assert_true(flush_has_barrier_before_tables(&f));
    assert_int_equal(entry_of(&f, 0), host | FORMAT_COPIED);
    end(&f);
}

// A zero cluster that another entry also refers to is no promise of space.
static void shared_space_is_none(void **state)
{
    static const struct {
        uint64_t offset, length;
    } rows[] = {{0, CLUSTER}, {512, 512}, {CLUSTER - 1, 1}};

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct fixture f;

        begin(&f);
        zero(&f, 0, CLUSTER, OP_NO_HOLE);
        flush(&f);
        uint64_t host = entry_of(&f, 0) & FORMAT_L2_OFFSET_MASK;
        zero(&f, rows[i].offset, rows[i].length, OP_NO_HOLE);
        flush(&f);
        // A reference of its own is enough.
        assert_int_equal(entry_of(&f, 0), host | FORMAT_L2_ZERO | FORMAT_COPIED);

        assert_int_equal(refcounts_set(f.image->refcounts, host / CLUSTER, 2), 0);
        zero(&f, rows[i].offset, rows[i].length, OP_NO_HOLE);
        flush(&f);
        expect_zero_cluster(&f, 0);
        assert_int_not_equal(entry_of(&f, 0) & FORMAT_L2_OFFSET_MASK, host);
        assert_int_equal(refcounts_get(f.image->refcounts, host / CLUSTER), 1);
        expect_bytes(&f, 0, CLUSTER, 0);
        end(&f);
    }
}

// A cluster that was used before may have lost its space to the host.
static void space_of_used_clusters_is_reserved(void **state)
{
    static unsigned char data[CLUSTER];
    struct fixture f;

    (void)state;
    begin(&f);
    assert_int_equal(scripted_write(f.disk, f.image, data, 0, sizeof(data)), 0);
    flush(&f);
    uint64_t host = entry_of(&f, 0) & FORMAT_L2_OFFSET_MASK;
    struct op discard = {.kind = OP_DISCARD, .length = CLUSTER};
    assert_int_equal(scripted_op(f.disk, f.image, &discard), 0);
    flush(&f);
    unsigned reservations = f.disk->submitted[FILE_ALLOCATE];
    zero(&f, 5 * CLUSTER, CLUSTER, OP_NO_HOLE);
    flush(&f);
    assert_int_equal(entry_of(&f, 5), host | FORMAT_L2_ZERO | FORMAT_COPIED);
    assert_int_equal(f.disk->submitted[FILE_ALLOCATE], reservations + 1);
    end(&f);
}

// If the host cannot reserve, zero clusters are linked all the same; if it has no room, the request
// fails.
static void reservations_that_fail(void **state)
{
    static unsigned char data[CLUSTER];
    struct op op = {.kind = OP_WRITE_ZEROES, .flags = OP_NO_HOLE, .length = CLUSTER};
    struct fixture f;

    (void)state;
    begin(&f);
    assert_int_equal(scripted_write(f.disk, f.image, data, 0, sizeof(data)), 0);
    f.disk->fail_kind = FILE_ALLOCATE;
    f.disk->fail_length = UINT64_MAX;
    f.disk->fail_error = -ENOSPC;
    assert_int_equal(scripted_op(f.disk, f.image, &op), -ENOSPC);
    f.disk->fail_error = -EOPNOTSUPP;
    assert_int_equal(scripted_write(f.disk, f.image, data, 0, sizeof(data)), 0);
    assert_int_equal(scripted_op(f.disk, f.image, &op), 0);
    flush(&f);
    expect_zero_cluster(&f, 0);
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(space_is_kept_and_nothing_written),
        cmocka_unit_test(old_bytes_do_not_come_back),
        cmocka_unit_test(shared_space_is_none),
        cmocka_unit_test(space_of_used_clusters_is_reserved),
        cmocka_unit_test(reservations_that_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
