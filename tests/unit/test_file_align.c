// SPDX-License-Identifier: Apache-2.0
// test_file_align.c: file_align.h over a file in memory that requires alignment, keeps requests
// until it is told to run one of them, and runs them in any order.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/file_align.h"

#define ALIGNMENT 512u
#define MEMORY_ALIGNMENT 64u
#define MEMORY_BYTES (24u << 20)
#define PENDING_MAX 512

// ---- The file below

struct memory_file {
    struct file file;
    unsigned char *bytes;
    uint64_t size;
    struct file_io *pending[PENDING_MAX];
    unsigned pending_count;
    unsigned served;
    uint64_t buffers_now; // bytes of reads and writes that are pending
    uint64_t buffers_most;
    int fail; // errno for the next request that runs
    unsigned random;
};

static unsigned next_random(struct memory_file *m)
{
    m->random = m->random * 1664525u + 1013904223u;
    return m->random >> 8;
}

static void memory_submit(struct file *file, struct file_io *io)
{
    struct memory_file *m = (struct memory_file *)file;

    assert_true(m->pending_count < PENDING_MAX);
    if (io->kind == FILE_READ || io->kind == FILE_WRITE) {
        assert_int_equal(io->offset % ALIGNMENT, 0);
        assert_int_equal(io->length % ALIGNMENT, 0);
        for (int i = 0; i < io->iovcnt; i++) {
            assert_int_equal((uintptr_t)io->iov[i].iov_base % MEMORY_ALIGNMENT, 0);
            assert_int_equal(io->iov[i].iov_len % ALIGNMENT, 0);
        }
        m->buffers_now += io->length;
        if (m->buffers_now > m->buffers_most)
            m->buffers_most = m->buffers_now;
    }
    m->pending[m->pending_count++] = io;
}

static void grow(struct memory_file *m, uint64_t size)
{
    assert_true(size <= MEMORY_BYTES);
    if (size > m->size)
        m->size = size;
}

static void copy(struct memory_file *m, struct file_io *io)
{
    uint64_t offset = io->offset;

    m->buffers_now -= io->length;
    for (int i = 0; i < io->iovcnt; i++) {
        assert_true(offset + io->iov[i].iov_len <= MEMORY_BYTES);
        if (io->kind == FILE_READ)
            memcpy(io->iov[i].iov_base, m->bytes + offset, io->iov[i].iov_len);
        else
            memcpy(m->bytes + offset, io->iov[i].iov_base, io->iov[i].iov_len);
        offset += io->iov[i].iov_len;
    }
    if (io->kind == FILE_WRITE)
        grow(m, offset);
}

static void run_pending(struct memory_file *m, unsigned n)
{
    struct file_io *io = m->pending[n];
    int result = -m->fail;

    m->pending[n] = m->pending[--m->pending_count];
    m->served++;
    m->fail = 0;
    if (result != 0) {
        if (io->kind == FILE_READ || io->kind == FILE_WRITE)
            m->buffers_now -= io->length;
        file_io_complete(io, result);
        return;
    }
    switch (io->kind) {
    case FILE_READ:
    case FILE_WRITE:
        copy(m, io);
        break;
    case FILE_ZERO:
        grow(m, io->offset + io->length);
        memset(m->bytes + io->offset, 0, io->length);
        break;
    case FILE_TRUNCATE:
        memset(m->bytes + io->offset, 0, MEMORY_BYTES - io->offset);
        m->size = io->offset;
        break;
    case FILE_EXTENTS:
        io->extents[io->extent_count++] = (struct file_extent){m->size, FILE_EXTENT_DATA};
        break;
    case FILE_PUNCH:
    case FILE_ALLOCATE:
    case FILE_DATASYNC:
        break;
    }
    file_io_complete(io, 0);
}

static void memory_wait(struct file *file)
{
    struct memory_file *m = (struct memory_file *)file;

    assert_true(m->pending_count > 0);
    run_pending(m, next_random(m) % m->pending_count);
}

static int64_t memory_size(struct file *file)
{
    return (int64_t)((struct memory_file *)file)->size;
}

static void memory_close(struct file *file)
{
    (void)file;
}

static const struct file_ops memory_ops = {
    .submit = memory_submit, .wait = memory_wait, .size = memory_size, .close = memory_close};

// ---- Fixture

struct fixture {
    struct runq runq;
    struct memory_file memory;
    struct file *file;
};

struct request {
    struct file_io io;
    struct iovec iov[3];
    bool finished;
};

static int setup(void **state)
{
    struct fixture *x = calloc(1, sizeof(*x));

    runq_init(&x->runq);
    x->memory.file = (struct file){.ops = &memory_ops, .runq = &x->runq};
    x->memory.bytes = calloc(1, MEMORY_BYTES);
    x->memory.random = 1;
    assert_int_equal(file_align_new(&x->memory.file, ALIGNMENT, MEMORY_ALIGNMENT, &x->file), 0);
    *state = x;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *x = *state;

    file_close(x->file);
    free(x->memory.bytes);
    free(x);
    return 0;
}

static void request_done(struct file_io *io)
{
    struct request *r = (struct request *)io;

    assert_false(r->finished);
    r->finished = true;
}

static void start(struct fixture *x, struct request *r, enum file_io_kind kind, uint64_t offset,
                  uint64_t length, void *buf)
{
    *r = (struct request){.io = {.kind = kind,
                                 .offset = offset,
                                 .length = length,
                                 .iov = r->iov,
                                 .iovcnt = buf != NULL,
                                 .done = request_done}};
    r->iov[0] = (struct iovec){.iov_base = buf, .iov_len = length};
    file_submit(x->file, &r->io);
    assert_false(r->finished);
}

static void drain_queue(struct fixture *x)
{
    while (runq_run(&x->runq)) {
    }
}

static void drain(struct fixture *x)
{
    drain_queue(x);
    while (x->memory.pending_count > 0) {
        memory_wait(&x->memory.file);
        drain_queue(x);
    }
}

// ---- Cases

static void test_aligned_passes(void **state)
{
    struct fixture *x = *state;
    _Alignas(64) unsigned char buf[1024];
    struct request r;

    memset(buf, 7, sizeof(buf));
    start(x, &r, FILE_WRITE, 512, sizeof(buf), buf);
    assert_int_equal(x->memory.pending_count, 1);
    assert_ptr_equal(x->memory.pending[0]->iov[0].iov_base, buf); // not copied
    drain(x);
    assert_true(r.finished);
    assert_int_equal(r.io.result, 0);
    assert_int_equal(x->memory.served, 1);
    assert_int_equal(file_size(x->file), 1536);
}

static void test_calls_of_partial_writes(void **state)
{
    static const struct {
        uint64_t offset;
        uint64_t length;
        unsigned calls;
    } rows[] = {
        {10, 20, 2},     // one block: read, write
        {500, 24, 3},    // two blocks: read both, write
        {0, 600, 2},     // a whole block and part of another
        {100, 924, 2},   // part of one and a whole one
        {100, 2000, 3},  // parts at both ends
        {1024, 1024, 1}, // aligned range, unaligned memory: no read
    };
    struct fixture *x = *state;
    _Alignas(64) unsigned char buf[4096];
    struct request r;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        unsigned before = x->memory.served;

        memset(x->memory.bytes, 0xaa, 8192);
        memset(buf, 0x11, sizeof(buf));
        start(x, &r, FILE_WRITE, rows[i].offset, rows[i].length, buf + 1);
        drain(x);
        assert_int_equal(r.io.result, 0);
        assert_int_equal(x->memory.served - before, rows[i].calls);
        for (uint64_t at = 0; at < 8192; at++) {
            bool inside = at >= rows[i].offset && at < rows[i].offset + rows[i].length;

            assert_int_equal(x->memory.bytes[at], inside ? 0x11 : 0xaa);
        }
    }
}

static void test_order_on_one_block(void **state)
{
    struct fixture *x = *state;
    _Alignas(64) unsigned char whole[512];
    unsigned char part[100];
    struct request first;
    struct request second;
    struct request third;
    struct request zero;
    struct request elsewhere;

    memset(whole, 1, sizeof(whole));
    memset(part, 2, sizeof(part));
    start(x, &first, FILE_WRITE, 0, 512, whole);
    start(x, &second, FILE_WRITE, 100, 100, part); // waits for the first
    start(x, &third, FILE_WRITE, 0, 512, whole);   // waits for the second
    start(x, &zero, FILE_ZERO, 0, 512, NULL);      // so does this, but not for the third
    start(x, &elsewhere, FILE_WRITE, 512, 512, whole);
    assert_int_equal(x->memory.pending_count, 2); // first, elsewhere
    run_pending(&x->memory, 0);
    drain_queue(x);
    assert_true(first.finished);
    assert_false(second.finished);
    while (!second.finished) {
        assert_false(third.finished || zero.finished);
        assert_true(x->memory.pending_count <= 2);
        memory_wait(&x->memory.file);
        drain_queue(x);
    }
    assert_int_equal(x->memory.bytes[99], 1);
    assert_int_equal(x->memory.bytes[100], 2);
    assert_int_equal(x->memory.bytes[199], 2);
    assert_int_equal(x->memory.bytes[200], 1);
    drain(x);
    assert_true(third.finished && zero.finished && elsewhere.finished);
}

static void test_truncate_waits(void **state)
{
    struct fixture *x = *state;
    unsigned char part[100] = {1};
    struct request write;
    struct request truncate;

    start(x, &write, FILE_WRITE, 5000, 100, part);
    start(x, &truncate, FILE_TRUNCATE, 1000, 0, NULL);
    drain(x);
    assert_true(write.finished && truncate.finished);
    assert_int_equal(file_size(x->file), 1000); // the write did not come after it
}

static void test_large_unaligned(void **state)
{
    enum { LENGTH = 5 << 20 };
    struct fixture *x = *state;
    unsigned char *data = malloc(LENGTH + 1);
    unsigned char *back = malloc(LENGTH + 1);
    struct request r;

    for (size_t i = 0; i <= LENGTH; i++)
        data[i] = (unsigned char)(i * 31 + (i >> 9));
    memset(x->memory.bytes, 0xbb, MEMORY_BYTES);
    start(x, &r, FILE_WRITE, 777, LENGTH, data + 1);
    drain(x);
    assert_int_equal(r.io.result, 0);
    assert_memory_equal(x->memory.bytes + 777, data + 1, LENGTH);
    assert_int_equal(x->memory.bytes[776], 0xbb);
    assert_int_equal(x->memory.bytes[777 + LENGTH], 0xbb);
    start(x, &r, FILE_READ, 777, LENGTH, back + 1);
    drain(x);
    assert_memory_equal(back + 1, data + 1, LENGTH);
    assert_true(x->memory.buffers_most <= 1u << 20);
    free(data);
    free(back);
}

// The memory of bounce buffers is bounded for any number of requests, and all requests end.
static void test_memory_bound(void **state)
{
    enum { COUNT = 60, LENGTH = 2 << 20 };
    struct fixture *x = *state;
    struct request *requests = calloc(COUNT, sizeof(*requests));
    unsigned char *buf = malloc((size_t)COUNT * LENGTH + 1);

    for (unsigned i = 0; i < COUNT; i++)
        start(x, &requests[i], FILE_READ, 1, LENGTH, buf + (size_t)i * LENGTH + 1);
    drain(x);
    for (unsigned i = 0; i < COUNT; i++)
        assert_true(requests[i].finished && requests[i].io.result == 0);
    assert_true(x->memory.buffers_most <= 16u << 20);
    assert_true(x->memory.buffers_most > 8u << 20);
    free(requests);
    free(buf);
}

static void test_errors(void **state)
{
    struct fixture *x = *state;
    unsigned char part[1000] = {1};
    struct request r;
    struct request after;

    // The first call of each fails in turn: reading the head, the tail, writing.
    for (unsigned n = 0; n < 3; n++) {
        start(x, &r, FILE_WRITE, 100, 1000, part);
        start(x, &after, FILE_WRITE, 0, 200, part);
        for (unsigned i = 0; i < n; i++) {
            run_pending(&x->memory, 0);
            drain_queue(x);
        }
        x->memory.fail = ENOSPC;
        drain(x);
        assert_true(r.finished && after.finished);
        assert_int_equal(r.io.result, -ENOSPC);
        assert_int_equal(after.io.result, 0);
    }
    start(x, &r, FILE_READ, INT64_MAX - 100, 100, part);
    drain(x);
    assert_int_equal(r.io.result, -EFBIG);
}

// Random requests in flight together; those that overlap are reads, or write equal bytes. The file
// must end as the model does.
static void test_random(void **state)
{
    enum { ROUNDS = 300, FLIGHT = 40, CELL = 200, SPAN = 65536 };
    struct fixture *x = *state;
    struct request requests[FLIGHT];
    unsigned char *model = calloc(1, SPAN);
    unsigned char *back = malloc(SPAN + 2048);
    unsigned char(*bufs)[CELL * 8] = malloc(FLIGHT * sizeof(*bufs));

    for (unsigned round = 0; round < ROUNDS; round++) {
        bool taken[SPAN / CELL] = {false};
        unsigned count = 0;

        while (count < FLIGHT) {
            unsigned first = next_random(&x->memory) % (SPAN / CELL - 8);
            unsigned cells = 1 + next_random(&x->memory) % 8;
            unsigned char value = (unsigned char)next_random(&x->memory);
            bool zero = next_random(&x->memory) % 4 == 0;

            for (unsigned i = first; i < first + cells; i++)
                cells = taken[i] ? i - first : cells;
            if (cells == 0) {
                count++;
                requests[count - 1].finished = true;
                continue;
            }
            memset(taken + first, true, cells);
            memset(bufs[count], value, sizeof(bufs[count]));
            memset(model + first * CELL, zero ? 0 : value, cells * CELL);
            start(x, &requests[count], zero ? FILE_ZERO : FILE_WRITE, (uint64_t)first * CELL,
                  (uint64_t)cells * CELL, zero ? NULL : bufs[count]);
            count++;
            if (next_random(&x->memory) % 3 == 0 && x->memory.pending_count > 0) {
                memory_wait(&x->memory.file);
                drain_queue(x);
            }
        }
        drain(x);
        for (unsigned i = 0; i < FLIGHT; i++)
            assert_true(requests[i].finished);
        assert_memory_equal(x->memory.bytes, model, SPAN);

        unsigned offset = next_random(&x->memory) % (SPAN / 2);
        unsigned length = next_random(&x->memory) % (SPAN / 2);
        assert_int_equal(file_read_blocking(x->file, back + round % 7, offset, length), 0);
        assert_memory_equal(back + round % 7, model + offset, length);
    }
    free(model);
    free(back);
    free(bufs);
}

static void test_bad_alignment(void **state)
{
    struct fixture *x = *state;
    struct file *file;

    assert_int_equal(file_align_new(&x->memory.file, 0, 1, &file), -EINVAL);
    assert_int_equal(file_align_new(&x->memory.file, 768, 1, &file), -EINVAL);
    assert_int_equal(file_align_new(&x->memory.file, 131072, 1, &file), -EINVAL);
    assert_int_equal(file_align_new(&x->memory.file, 512, 8192, &file), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_aligned_passes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_calls_of_partial_writes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_order_on_one_block, setup, teardown),
        cmocka_unit_test_setup_teardown(test_truncate_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_unaligned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_bound, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_random, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_alignment, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
