// SPDX-License-Identifier: Apache-2.0
// test_no_memory.c: memory that runs out: once at each allocation, and inside a sync. Nothing is
// lost, no needless write is made, and a retry succeeds when there is memory again.
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "qcow2/core/image_state.h"
#include "qcow2/format/format.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/refcount.h"
#include "qcow2/durable/recover.h"
#include "tests/unit/engine.h"
#include "tests/unit/scripted_file.h"

// ---- Memory that runs out: the linker leads calls here (--wrap) ---------------------------------

static size_t callocs_refused, reallocs_refused; // from this size on; 0: none

static size_t until_refused; // the so manieth allocation from now on is; 0: none

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
int __real_posix_memalign(void **out, size_t alignment, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes);

static bool is_refused(void)
{
    return until_refused > 0 && --until_refused == 0;
}

void *__wrap_malloc(size_t bytes)
{
    return is_refused() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    if (is_refused() || (callocs_refused > 0 && count * bytes >= callocs_refused))
        return NULL;
    return __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    if (is_refused() || (reallocs_refused > 0 && bytes >= reallocs_refused))
        return NULL;
    return __real_realloc(old, bytes);
}

int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes)
{
    return is_refused() ? ENOMEM : __real_posix_memalign(out, alignment, bytes);
}

// ---- Tests --------------------------------------------------------------------------------------

static struct image *new_image(struct scripted_file *disk, unsigned cluster_bits,
                               unsigned refcount_order)
{
    struct create_options create = {.size = 64u << 20,
                                    .version = 3,
                                    .cluster_bits = cluster_bits,
                                    .refcount_order = refcount_order,
                                    .lazy_refcounts = 1};
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};

    return scripted_image_new(disk, &create, &options);
}

static int flush(struct scripted_file *disk, struct image *image)
{
    return scripted_op(disk, image, &(struct op){.kind = OP_FLUSH});
}

// Ends everything in flight and queued. Returns how often the header was written meanwhile.
static unsigned run_and_count_headers(struct scripted_file *disk)
{
    unsigned headers = 0;

    while (scripted_file_turn(disk) || disk->queued > 0) {
        if (!runq_empty(&disk->runq) || disk->queued == 0)
            continue;
        headers += disk->queue[0]->kind == FILE_WRITE && disk->queue[0]->offset < 512;
        scripted_file_end(disk, 0, 0);
    }
    return headers;
}

static void note_done(struct op *op)
{
    op->buf = NULL;
}

// The first sync sets the dirty bit. If a later one has no memory for its copies the bit stays
// known: it is not written again.
static void the_dirty_bit_is_set_once(void **state)
{
    struct scripted_file *disk = scripted_file_new();
    struct image *image = new_image(disk, 9, 4);
    unsigned char data[512] = {1};
    struct op last = {.kind = OP_FLUSH, .buf = data, .done = note_done};

    (void)state;
    assert_int_equal(scripted_write(disk, image, data, 0, sizeof(data)), 0);
    assert_int_equal(flush(disk, image), 0);
    assert_true(dirty_bit_on(image->dirty_bit));

    // A slice maps 32 KiB. More slices than the list of copies has room for at first.
    for (uint64_t i = 0; i < 40; i++)
        assert_int_equal(scripted_write(disk, image, data, i << 15, sizeof(data)), 0);
    reallocs_refused = 1;
    assert_int_equal(flush(disk, image), -ENOMEM);
    reallocs_refused = 0;
    assert_int_equal(image->latched_error, 0);

    op_start(image, &last);
    assert_int_equal(run_and_count_headers(disk), 0);
    assert_null(last.buf);
    assert_int_equal(last.result, 0);
    image_close(image);
    scripted_file_free(disk);
}

// On a device with old bytes: a refcount block is written as a whole when it gets its place, even
// if placing it failed at first.
static void a_refcount_block_is_written_as_a_whole(void **state)
{
    const unsigned cluster_bits = 13, per_block = 1024; // 64 bits each, two pieces a block
    struct scripted_file *disk = scripted_file_new();
    struct create_options create = {.size = 64u << 20,
                                    .version = 3,
                                    .cluster_bits = cluster_bits,
                                    .refcount_order = 6,
                                    .lazy_refcounts = 0};
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    unsigned char *data = calloc(1, per_block << cluster_bits);
    struct error err;

    (void)state;
    assert_non_null(data);
    scripted_file_create(disk, &create);
    memset(disk->bytes + disk->size, 0xff, 32u << 20);
    disk->size += 32u << 20;
    disk->file.fresh_is_zero = false;
    struct image *image = scripted_image_open(disk, &options);

    memset(data, 1, per_block << cluster_bits);
    assert_int_equal(scripted_write(disk, image, data, 0, 512), 0);
    assert_int_equal(flush(disk, image), 0);
    // The set of known tables is so full that one more takes memory.
    struct cluster_set *tables = &image->guard->tables;
    for (uint64_t far = 1ull << 40; tables->count * 2 < tables->capacity; far++)
        assert_int_equal(cluster_set_add(tables, far), 0);
    callocs_refused = tables->capacity * sizeof(*tables->slots);
    assert_int_equal(scripted_write(disk, image, data, 0, per_block << cluster_bits), 0);
    assert_true(image->alloc->fresh > per_block);
    assert_int_equal(image->refcounts->table[1], 0);
    // The dirty bit takes the place of the refcounts.
    assert_int_equal(flush(disk, image), 0);
    assert_true(dirty_bit_on(image->dirty_bit));
    callocs_refused = 0;

    assert_int_equal(flush(disk, image), 0);
    assert_int_equal(image_finish(image, &err), 0);
    uint64_t block = image->refcounts->table[1];
    assert_int_not_equal(block, 0);
    for (unsigned i = 0; i < per_block; i++)
        assert_int_equal(format_get64(disk->bytes + block + i * 8),
                         refcounts_get(image->refcounts, per_block + i));
    image_close(image);
    scripted_file_free(disk);
    free(data);
}

// ---- Each allocation once -----------------------------------------------------------------------

// Requests that take memory in all ways: a copy of a shared table and of a part of a cluster, new
// tables and refcount blocks, clusters that are given up, a clean point. The image has a snapshot.
static const struct {
    enum op_kind kind;
    unsigned flags;
    uint64_t offset, length;
} requests[] = {
    {OP_WRITE, 0, 100, 200},
    {OP_WRITE, OP_FUA, 64 << 10, 70 << 10},
    {OP_WRITE_ZEROES, OP_NO_HOLE, 256 << 10, 4096},
    {OP_WRITE_ZEROES, 0, 700, 20},
    {OP_DISCARD, OP_FUA, 80 << 10, 8192},
    {OP_READ, 0, 0, 4096},
    {OP_WRITE, 0, 96 << 10, 4096},
    {OP_FLUSH, 0, 0, 0},
};

static void ignore(void *context, int result)
{
    (void)context;
    (void)result;
}

// Runs them; where memory is short each may say so. Returns how many did.
static unsigned run_requests(struct engine *e, bool may_fail)
{
    unsigned failed = 0;

    for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
        engine_fill(7);
        int result = engine_do(e, requests[i].kind, requests[i].flags, requests[i].offset,
                               requests[i].length);

        // A refcount block that could not be decoded counts as one that could not be read.
        bool unread = e->image->recovery->error < 0 || engine_said(e, "error 12");
        assert_true(result == 0 || (may_fail && (result == -ENOMEM || (result == -EIO && unread))));
        failed += result < 0;
        // A request that says that all is durable leaves no table behind in memory.
        if (result == 0 && (requests[i].kind == OP_FLUSH || (requests[i].flags & OP_FUA)))
            assert_int_equal(e->image->cache->dirty_count + e->image->l1.dirty_count, 0);
    }
    image_clean(e->image, ignore, NULL);
    engine_run(e);
    return failed;
}

static void expect_all(struct engine *e)
{
    engine_expect(e, 0, 100, 3);
    engine_expect(e, 100, 200, 7);
    engine_expect(e, 300, 400, 3);
    engine_expect(e, 700, 20, 0);
    engine_expect(e, 720, 300, 3);
    engine_expect(e, 64 << 10, 16 << 10, 7);
    engine_expect(e, 80 << 10, 8192, 0);
    engine_expect(e, 96 << 10, 4096, 7);
}

static void begin_engine(struct engine *e)
{
    engine_begin(e, &engine_small);
    assert_int_equal(engine_write(e, 0, 2048, 3), 0);
    engine_snapshot(e);
}

// Clusters may leak where the log says so.
static void end_engine(struct engine *e)
{
    struct error err;

    assert_int_equal(image_finish(e->image, &err), 0);
    if (!engine_said(e, "leak until the next check"))
        assert_int_equal(engine_faults(e), 0);
    engine_free(e);
}

static void requests_without_memory(void **state)
{
    bool all = false;

    (void)state;
    for (size_t n = 1; !all; n++) {
        struct engine e;

        begin_engine(&e);
        until_refused = n;
        run_requests(&e, true);
        all = until_refused > 0;
        until_refused = 0;
        assert_int_equal(e.image->latched_error, 0);
        assert_int_equal(e.image->op_count, 0);
        assert_int_equal(e.image->bounce_bytes, 0);
        assert_int_equal(run_requests(&e, false), 0);
        expect_all(&e);
        end_engine(&e);
    }
}

// Recovery that fails forbids new clusters until the image is opened again.
static void recovery_without_memory(void **state)
{
    static const struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    bool all = false;

    (void)state;
    for (size_t n = 1; !all; n++) {
        struct engine e;

        begin_engine(&e);
        uint64_t bits = format_get64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE);
        format_put64(e.disk->bytes + FORMAT_HEADER_INCOMPATIBLE, bits | HEADER_INCOMPATIBLE_DIRTY);
        engine_crash_only(&e, &options);
        until_refused = n;
        engine_run(&e);
        all = until_refused > 0;
        until_refused = 0;
        assert_int_equal(e.image->recovery->error, all ? 0 : -EIO);
        engine_expect(&e, 0, 2048, 3);
        run_requests(&e, true);
        engine_crash(&e, &options);
        assert_int_equal(run_requests(&e, false), 0);
        expect_all(&e);
        end_engine(&e);
    }
}

// An image that cannot be opened says so, and the file is as it was.
static void opening_without_memory(void **state)
{
    static const struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    const struct image_host host = {0};
    int result = -1;

    (void)state;
    struct engine e;
    begin_engine(&e);
    engine_end_image(&e);
    for (size_t n = 1; result != 0; n++) {
        struct image *image;
        struct error err = {0};

        unsigned writes = e.disk->submitted[FILE_WRITE];
        until_refused = n;
        result = image_open(&image, &e.disk->file, &options, &host, &err);
        until_refused = 0;
        assert_int_equal(e.disk->submitted[FILE_WRITE], writes);
        if (result == 0) {
            image_close(image);
            break;
        }
        assert_int_equal(result, -ENOMEM);
        assert_non_null(strstr(err.text, "no memory"));
    }
    engine_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_dirty_bit_is_set_once),
        cmocka_unit_test(a_refcount_block_is_written_as_a_whole),
        cmocka_unit_test(requests_without_memory),
        cmocka_unit_test(recovery_without_memory),
        cmocka_unit_test(opening_without_memory),
    };

    return cmocka_run_group_tests_name("no memory", tests, NULL, NULL);
}
