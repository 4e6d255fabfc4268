// SPDX-License-Identifier: Apache-2.0
// test_file.c: file backends. Every case runs over io_uring and threads, through the page cache and
// past it.
#define _GNU_SOURCE 1 // fallocate
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/file_backend.h"

#define KIB 1024u
#define MIB (1024u * KIB)

// Milliseconds that a completion may take before a test fails: the machine may be busy, and the
// disk slow.
#define PATIENCE_MS 120000

struct variant {
    enum backend_kind kind;
    bool direct;
};

static struct variant variants[] = {
    {BACKEND_IO_URING, false},
    {BACKEND_IO_URING, true},
    {BACKEND_THREADS, false},
    {BACKEND_THREADS, true},
};

struct fixture {
    char folder[64];
    char path[80];
    struct runq runq;
    struct backend *backend;
    struct file *file;
    struct file_open_options options;
    struct error err;
};

static int setup(void **state)
{
    const struct variant *variant = *state;
    struct fixture *x = calloc(1, sizeof(*x));

    // Not in /tmp, which may be a tmpfs without direct I/O.
    strcpy(x->folder, "/var/tmp/lazycow-test-file-XXXXXX");
    assert_non_null(mkdtemp(x->folder));
    snprintf(x->path, sizeof(x->path), "%s/image", x->folder);
    int fd = open(x->path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);

    runq_init(&x->runq);
    x->backend = backend_new(variant->kind, &x->runq, &x->err);
    if (x->backend == NULL)
        fail_msg("%s", x->err.text);
    assert_string_equal(backend_name(x->backend),
                        variant->kind == BACKEND_THREADS ? "threads" : "io_uring");
    x->options = (struct file_open_options){.direct = variant->direct};
    if (backend_open_file(x->backend, x->path, &x->options, &x->file, &x->err) != 0)
        fail_msg("%s", x->err.text);
    *state = x;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *x = *state;

    file_close(x->file);
    backend_free(x->backend);
    unlink(x->path);
    rmdir(x->folder);
    free(x);
    return 0;
}

static void fill(unsigned char *buf, size_t length, unsigned seed)
{
    for (size_t i = 0; i < length; i++) {
        seed = seed * 1664525u + 1013904223u;
        buf[i] = (unsigned char)(seed >> 24);
    }
}

// Requests in flight, run as a server's loop runs them: turn, run queue, poll.
struct flight {
    struct file_io io;
    struct iovec iov[FILE_IOV_MAX];
    unsigned *left;
    bool finished;
};

static void flight_done(struct file_io *io)
{
    struct flight *flight = (struct flight *)io;

    assert_false(flight->finished);
    flight->finished = true;
    (*flight->left)--;
}

static void start(struct fixture *x, struct flight *flight, unsigned *left, enum file_io_kind kind,
                  uint64_t offset, uint64_t length, void *buf)
{
    *flight = (struct flight){.left = left};
    flight->iov[0] = (struct iovec){.iov_base = buf, .iov_len = length};
    flight->io = (struct file_io){.kind = kind,
                                  .offset = offset,
                                  .length = length,
                                  .iov = flight->iov,
                                  .iovcnt = buf != NULL,
                                  .done = flight_done};
    (*left)++;
    file_submit(x->file, &flight->io);
    assert_false(flight->finished); // never inside submit
}

static void run_loop(struct fixture *x, const unsigned *left)
{
    struct pollfd pollfd = {.fd = backend_fd(x->backend), .events = POLLIN};

    while (*left > 0) {
        backend_turn(x->backend);
        if (runq_run(&x->runq))
            continue;

        int ready = poll(&pollfd, 1, PATIENCE_MS);
        if (ready == 0)
            fail_msg("nothing wakes the loop, %u requests left", *left);
        assert_true(ready > 0 || errno == EINTR);
    }
}

static void read_equals(struct fixture *x, uint64_t offset, const void *expected, size_t length)
{
    unsigned char *buf = malloc(length);

    memset(buf, 0xee, length);
    assert_int_equal(file_read_blocking(x->file, buf, offset, length), 0);
    assert_memory_equal(buf, expected, length);
    free(buf);
}

static void read_is_zero(struct fixture *x, uint64_t offset, size_t length)
{
    unsigned char *zeros = calloc(1, length);

    read_equals(x, offset, zeros, length);
    free(zeros);
}

static void test_round_trip(void **state)
{
    static const struct {
        uint64_t offset;
        size_t length;
    } ranges[] = {
        {0, 4096},          {0, 1},
        {511, 2},           {4095, 2},
        {1, 4094},          {3, 100000},
        {65536, 65536},     {70000, 3 * MIB + 5},
        {8 * MIB, 8 * MIB}, {20 * MIB + 7, 512},
    };
    struct fixture *x = *state;

    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        unsigned char *buf = malloc(ranges[i].length);

        fill(buf, ranges[i].length, (unsigned)i);
        assert_int_equal(file_write_blocking(x->file, buf, ranges[i].offset, ranges[i].length), 0);
        read_equals(x, ranges[i].offset, buf, ranges[i].length);
        free(buf);
    }
    read_is_zero(x, 17 * MIB, MIB); // never written
}

static void test_many_buffers(void **state)
{
    struct fixture *x = *state;
    unsigned char data[FILE_IOV_MAX * 1000];
    unsigned char back[sizeof(data)];
    unsigned left = 0;
    struct flight flight = {.left = &left};

    fill(data, sizeof(data), 5);
    for (int pass = 0; pass < 2; pass++) {
        unsigned char *buf = pass == 0 ? data : back;
        uint64_t total = 0;

        flight = (struct flight){.left = &left};
        for (int i = 0; i < FILE_IOV_MAX; i++) {
            // Lengths differ, and one buffer is empty.
            size_t length = i == 3 ? 0 : 100 + 37 * (size_t)i;

            flight.iov[i] = (struct iovec){.iov_base = buf + total, .iov_len = length};
            total += length;
        }
        flight.io = (struct file_io){.kind = pass == 0 ? FILE_WRITE : FILE_READ,
                                     .offset = 777,
                                     .length = total,
                                     .iov = flight.iov,
                                     .iovcnt = FILE_IOV_MAX,
                                     .done = flight_done};
        left = 1;
        file_submit(x->file, &flight.io);
        run_loop(x, &left);
        assert_int_equal(flight.io.result, 0);
        if (pass == 1)
            assert_memory_equal(data, back, total);
    }
    read_is_zero(x, 0, 777);
}

static void test_end_of_file(void **state)
{
    struct fixture *x = *state;
    unsigned char data[5000];
    unsigned char expected[20000] = {0};
    unsigned char back[20000];
    unsigned left = 0;
    struct flight flight = {.left = &left};

    // Empty, then of a size that is no multiple of any alignment.
    read_is_zero(x, 0, 10000);
    fill(data, sizeof(data), 9);
    assert_int_equal(truncate(x->path, 0), 0);
    int fd = open(x->path, O_WRONLY);
    assert_int_equal(pwrite(fd, data, sizeof(data), 0), sizeof(data));
    close(fd);
    assert_int_equal(file_size(x->file), sizeof(data));

    memcpy(expected, data, sizeof(data));
    read_equals(x, 0, expected, sizeof(expected));
    read_equals(x, 4096, expected + 4096, 4096);
    read_is_zero(x, 5000, 100);
    read_is_zero(x, 1 * MIB, 8192);

    // The end lies inside the second of three buffers.
    memset(back, 0xee, sizeof(back));
    flight.iov[0] = (struct iovec){back, 4000};
    flight.iov[1] = (struct iovec){back + 4000, 4000};
    flight.iov[2] = (struct iovec){back + 8000, 12000};
    flight.io = (struct file_io){
        .kind = FILE_READ, .length = 20000, .iov = flight.iov, .iovcnt = 3, .done = flight_done};
    left = 1;
    file_submit(x->file, &flight.io);
    run_loop(x, &left);
    assert_int_equal(flight.io.result, 0);
    assert_memory_equal(back, expected, sizeof(back));
}

static void test_empty_requests(void **state)
{
    struct fixture *x = *state;
    char byte = 'x';

    assert_int_equal(file_write_blocking(x->file, &byte, 100, 0), 0);
    assert_int_equal(file_read_blocking(x->file, &byte, 100, 0), 0);
    assert_int_equal(file_do_blocking(x->file, FILE_ZERO, 100, 0), 0);
    assert_int_equal(file_do_blocking(x->file, FILE_PUNCH, 100, 0), 0);
    assert_int_equal(file_do_blocking(x->file, FILE_ALLOCATE, 100, 0), 0);
    assert_int_equal(file_size(x->file), 0);
}

// More than a ring or the pool holds, more than direct I/O has bounce buffers for.
static void test_many_in_flight(void **state)
{
    enum { COUNT = 3000 };
    struct fixture *x = *state;
    struct flight *flights = calloc(COUNT, sizeof(*flights));
    unsigned char *data = malloc(COUNT * 4096);
    unsigned char *back = calloc(COUNT, 4096);
    unsigned left = 0;

    fill(data, COUNT * 4096, 3);
    for (unsigned i = 0; i < COUNT; i++)
        start(x, &flights[i], &left, FILE_WRITE, (uint64_t)i * 4096, 4096, data + i * 4096);
    run_loop(x, &left);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(flights[i].io.result, 0);
        start(x, &flights[i], &left, FILE_READ, (uint64_t)i * 4096, 4096, back + i * 4096);
    }
    run_loop(x, &left);
    for (unsigned i = 0; i < COUNT; i++)
        assert_int_equal(flights[i].io.result, 0);
    assert_memory_equal(data, back, COUNT * 4096);
    free(flights);
    free(data);
    free(back);
}

// Writes in flight that share blocks do not undo each other.
static void test_neighbours(void **state)
{
    enum { COUNT = 400, LENGTH = 100 };
    struct fixture *x = *state;
    struct flight flights[COUNT];
    unsigned char data[COUNT * LENGTH];
    unsigned left = 0;

    fill(data, sizeof(data), 11);
    for (unsigned i = 0; i < COUNT; i++) {
        unsigned n = (i * 7) % COUNT; // 7 and COUNT have no common factor

        start(x, &flights[n], &left, FILE_WRITE, 50 + n * LENGTH, LENGTH, data + n * LENGTH);
    }
    run_loop(x, &left);
    for (unsigned i = 0; i < COUNT; i++)
        assert_int_equal(flights[i].io.result, 0);
    read_equals(x, 50, data, sizeof(data));
    read_is_zero(x, 0, 50);
}

// Large requests leave the loop's thread; cold ones wait for the disk. poll wakes the loop for
// them.
static void test_wake_up(void **state)
{
    enum { LENGTH = 4 * MIB };
    struct fixture *x = *state;
    struct flight flights[4];
    unsigned char *data = malloc(LENGTH);
    unsigned char *back = malloc(LENGTH);
    unsigned left = 0;

    fill(data, LENGTH, 2);
    start(x, &flights[0], &left, FILE_WRITE, 0, LENGTH, data);
    run_loop(x, &left);
    assert_int_equal(flights[0].io.result, 0);
    start(x, &flights[0], &left, FILE_DATASYNC, 0, 0, NULL);
    run_loop(x, &left);
    assert_int_equal(flights[0].io.result, 0);

    int fd = open(x->path, O_RDONLY);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(fd);
    for (unsigned i = 0; i < 4; i++)
        start(x, &flights[i], &left, FILE_READ, i * MIB + i, MIB - i, back + i * MIB + i);
    run_loop(x, &left);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(flights[i].io.result, 0);
        assert_memory_equal(data + i * MIB + i, back + i * MIB + i, MIB - i);
    }
    free(data);
    free(back);
}

static void test_zero(void **state)
{
    struct fixture *x = *state;
    unsigned char data[65536];
    struct stat st;

    fill(data, sizeof(data), 1);
    assert_int_equal(file_write_blocking(x->file, data, 0, sizeof(data)), 0);
    assert_int_equal(file_do_blocking(x->file, FILE_ZERO, 1000, 30000), 0);
    memset(data + 1000, 0, 30000);
    read_equals(x, 0, data, sizeof(data));
    assert_int_equal(file_do_blocking(x->file, FILE_ZERO, 60000, MIB), 0); // grows
    assert_int_equal(file_size(x->file), 60000 + MIB);
    read_equals(x, 0, data, 60000);
    read_is_zero(x, 60000, MIB);
    stat(x->path, &st);
    assert_true(st.st_blocks * 512 >= (off_t)MIB); // allocated
}

static void test_punch(void **state)
{
    struct fixture *x = *state;
    static unsigned char data[MIB];
    struct stat before;
    struct stat after;

    fill(data, sizeof(data), 1);
    assert_int_equal(file_write_blocking(x->file, data, 0, sizeof(data)), 0);
    assert_int_equal(file_do_blocking(x->file, FILE_DATASYNC, 0, 0), 0);
    stat(x->path, &before);
    assert_int_equal(file_do_blocking(x->file, FILE_PUNCH, 1000, 900000), 0);
    stat(x->path, &after);
    assert_true(after.st_blocks < before.st_blocks);
    memset(data + 1000, 0, 900000);
    read_equals(x, 0, data, sizeof(data));
    assert_int_equal(file_do_blocking(x->file, FILE_PUNCH, MIB - 100, 10 * MIB), 0);
    assert_int_equal(file_size(x->file), MIB); // never changes the size
}

static void test_allocate_and_truncate(void **state)
{
    struct fixture *x = *state;
    unsigned char data[10000];
    struct stat st;

    fill(data, sizeof(data), 4);
    assert_int_equal(file_write_blocking(x->file, data, 0, sizeof(data)), 0);
    assert_int_equal(file_do_blocking(x->file, FILE_ALLOCATE, 5000, 2 * MIB), 0);
    assert_int_equal(file_size(x->file), 5000 + 2 * MIB);
    stat(x->path, &st);
    assert_true(st.st_blocks * 512 >= (off_t)(2 * MIB));
    read_equals(x, 0, data, sizeof(data));
    read_is_zero(x, 12288, 100000);

    assert_int_equal(file_do_blocking(x->file, FILE_TRUNCATE, 3001, 0), 0);
    assert_int_equal(file_size(x->file), 3001);
    assert_int_equal(file_do_blocking(x->file, FILE_TRUNCATE, 9000, 0), 0);
    assert_int_equal(file_size(x->file), 9000);
    read_equals(x, 0, data, 3001);
    read_is_zero(x, 3001, 9000);
}

static void test_error(void **state)
{
    struct fixture *x = *state;
    struct rlimit old;
    unsigned char *data = calloc(1, MIB);

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){.rlim_cur = 1 * MIB, .rlim_max = old.rlim_max}),
        0);
    // Small and large: on the loop's thread and elsewhere. Half of the last one fits.
    assert_int_equal(file_write_blocking(x->file, data, 2 * MIB, 4096), -EFBIG);
    assert_int_equal(file_write_blocking(x->file, data, 2 * MIB, MIB), -EFBIG);
    assert_int_equal(file_write_blocking(x->file, data, MIB / 2, MIB), -EFBIG);
    assert_int_equal(file_do_blocking(x->file, FILE_TRUNCATE, 2 * MIB, 0), -EFBIG);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(file_write_blocking(x->file, data, 2 * MIB, 4096), 0);
    free(data);
}

static void test_no_flush(void **state)
{
    struct fixture *x = *state;
    struct file *checked = x->file;
    unsigned left = 0;
    struct flight flight;

    x->options.no_flush = true;
    assert_int_equal(backend_open_file(x->backend, x->path, &x->options, &x->file, &x->err), 0);
    start(x, &flight, &left, FILE_DATASYNC, 0, 0, NULL);
    // The requests end without a turn of the backend, so they never reached it.
    while (left > 0 && runq_run(&x->runq)) {
    }
    assert_int_equal(left, 0);
    assert_int_equal(flight.io.result, 0);
    file_close(x->file);
    x->file = checked;
}

static void test_extents(void **state)
{
    struct fixture *x = *state;
    unsigned char data[65536];

    fill(data, sizeof(data), 1);
    assert_int_equal(file_write_blocking(x->file, data, MIB, sizeof(data)), 0);
    assert_int_equal(file_do_blocking(x->file, FILE_TRUNCATE, 4 * MIB, 0), 0);

    // As in a loop: the answer wakes it through the backend's descriptor.
    struct file_extent extents[4];
    struct flight flight;
    unsigned left = 1;
    flight = (struct flight){.left = &left};
    flight.io = (struct file_io){.kind = FILE_EXTENTS,
                                 .offset = MIB / 2,
                                 .length = 1,
                                 .extents = extents,
                                 .extent_max = 4,
                                 .done = flight_done};
    file_submit(x->file, &flight.io);
    run_loop(x, &left);
    assert_int_equal(flight.io.result, 0);
    assert_int_equal(flight.io.extent_count, 3);
    assert_int_equal(extents[0].kind, FILE_EXTENT_HOLE);
    assert_int_equal(extents[0].length, MIB / 2);
    assert_int_equal(extents[1].kind, FILE_EXTENT_DATA);
    assert_int_equal(extents[1].length, sizeof(data));
    // Behind the end of the file there is nothing either.
    assert_int_equal(extents[2].kind, FILE_EXTENT_HOLE);
    assert_true(extents[2].length > 4 * MIB);
}

static void open_fails(struct fixture *x, const char *path, int code, const char *text)
{
    struct file *file = NULL;
    int result = backend_open_file(x->backend, path, &x->options, &file, &x->err);

    assert_int_equal(result, -code);
    assert_null(file);
    assert_non_null(strstr(x->err.text, path));
    if (strstr(x->err.text, text) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", x->err.text, text);
    assert_null(strchr(x->err.text, '\n'));
}

static void test_open_errors(void **state)
{
    struct fixture *x = *state;
    char path[96];

    snprintf(path, sizeof(path), "%s/missing", x->folder);
    open_fails(x, path, ENOENT, "No such file");
    open_fails(x, x->folder, EISDIR, "name an image file");
    snprintf(path, sizeof(path), "%s/fifo", x->folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    open_fails(x, path, EINVAL, "neither a file nor a block device");
    unlink(path);
    x->options.force_share = true;
    open_fails(x, x->path, EINVAL, "read-only");

    x->options.read_only = true;
    open_fails(x, x->folder, EISDIR, "a directory");
}

// A second open in the same process is another user of the image.
static void test_open_locks(void **state)
{
    struct fixture *x = *state;
    struct file *writer;
    struct file *reader;

    x->options.locking = FILE_LOCKING_ON;
    assert_int_equal(backend_open_file(x->backend, x->path, &x->options, &writer, &x->err), 0);
    open_fails(x, x->path, EBUSY, "given twice");
    x->options.read_only = true;
    open_fails(x, x->path, EBUSY, "given twice");
    x->options.force_share = true;
    assert_int_equal(backend_open_file(x->backend, x->path, &x->options, &reader, &x->err), 0);
    assert_true(reader->read_only);
    file_close(reader);
    file_close(writer);
    x->options.force_share = false;
    assert_int_equal(backend_open_file(x->backend, x->path, &x->options, &reader, &x->err), 0);
    file_close(reader);
}

// A cold page that a write covers in part is read by a worker, not by the loop.
static void test_cold_edges(void **state)
{
    struct fixture *x = *state;
    static unsigned char data[MIB];

    fill(data, sizeof(data), 8);
    assert_int_equal(file_write_blocking(x->file, data, 0, sizeof(data)), 0);
    assert_int_equal(file_do_blocking(x->file, FILE_DATASYNC, 0, 0), 0);
    int fd = open(x->path, O_RDONLY);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(fd);
    for (unsigned i = 1; i < 200; i++) {
        memset(data + i * 5001, (int)i, 300);
        assert_int_equal(file_write_blocking(x->file, data + i * 5001, i * 5001, 300), 0);
    }
    read_equals(x, 0, data, sizeof(data));
}

// ---- Which barriers the submitting thread makes itself ------------------------------------------

// The clock of clock_now_ns() in this program: every look at it costs step_ns. So the test decides
// how long a barrier seems to take, not the disk or the machine.
static struct {
    uint64_t now_ns;
    uint64_t step_ns;
} test_clock = {.now_ns = 1000000000, .step_ns = 1000};

#define QUICK_STEP_NS 1000u         // a barrier takes a microsecond
#define SLOW_STEP_NS 50000000u      // and now 50 ms
#define PENALTY_OVER_NS 3000000000u // longer than any slow barrier is remembered

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    if (clock != CLOCK_MONOTONIC)
        return __real_clock_gettime(clock, now);
    test_clock.now_ns += test_clock.step_ns;
    now->tv_sec = (time_t)(test_clock.now_ns / 1000000000u);
    now->tv_nsec = (long)(test_clock.now_ns % 1000000000u);
    return 0;
}

// Returns true if a barrier is over when submit returns. Waits for the barrier in any case.
static bool sync_inline(struct fixture *x)
{
    struct flight flight;
    unsigned left = 0;
    bool over;

    start(x, &flight, &left, FILE_DATASYNC, 0, 0, NULL);
    over = !runq_empty(&x->runq);
    run_loop(x, &left);
    assert_int_equal(flight.io.result, 0);
    assert_int_equal(backend_has_blocked(x->backend), over);
    return over;
}

static int setup_clock(void **state)
{
    struct fixture *x;
    int result = setup(state);

    x = *state;
    file_close(x->file);
    x->options.direct = false;
    if (backend_open_file(x->backend, x->path, &x->options, &x->file, &x->err) != 0)
        fail_msg("%s", x->err.text);
    test_clock.step_ns = QUICK_STEP_NS;
    return result;
}

static void test_barriers_of_many_clients(void **state)
{
    struct fixture *x = *state;

    for (int i = 0; i < 100; i++)
        assert_false(sync_inline(x));
}

static void test_barriers_of_one_client(void **state)
{
    struct fixture *x = *state;

    backend_set_alone(x->backend, true);
    assert_false(sync_inline(x)); // nothing is known of this disk
    for (int i = 0; i < 100; i++)
        assert_true(sync_inline(x));
    backend_set_alone(x->backend, false);
    assert_false(sync_inline(x));
}

static void test_barriers_with_much_to_write(void **state)
{
    struct fixture *x = *state;
    unsigned char *buf = calloc(1, MIB);

    backend_set_alone(x->backend, true);
    assert_false(sync_inline(x));
    assert_true(sync_inline(x));
    assert_int_equal(file_write_blocking(x->file, buf, 0, 4096), 0);
    assert_true(sync_inline(x));
    assert_int_equal(file_write_blocking(x->file, buf, 0, MIB), 0);
    assert_false(sync_inline(x));
    assert_true(sync_inline(x));
    free(buf);
}

static void test_barriers_beside_other_work(void **state)
{
    struct fixture *x = *state;
    struct flight flight;
    unsigned left = 0;

    backend_set_alone(x->backend, true);
    assert_false(sync_inline(x));
    assert_true(sync_inline(x));
    start(x, &flight, &left, FILE_ALLOCATE, 0, MIB, NULL);
    assert_false(sync_inline(x));
    run_loop(x, &left);
    assert_int_equal(flight.io.result, 0);
}

static void test_barriers_that_are_slow(void **state)
{
    struct fixture *x = *state;

    backend_set_alone(x->backend, true);
    assert_false(sync_inline(x));
    assert_true(sync_inline(x));
    test_clock.step_ns = SLOW_STEP_NS;
    assert_true(sync_inline(x)); // nobody could know
    test_clock.step_ns = QUICK_STEP_NS;
    assert_false(sync_inline(x));
    assert_false(sync_inline(x)); // a quick barrier by a worker does not outweigh it
    test_clock.now_ns += PENALTY_OVER_NS;
    assert_true(sync_inline(x));
}

static void test_auto(void **state)
{
    struct runq runq;
    struct error err;

    (void)state;
    runq_init(&runq);
    struct backend *backend = backend_new(BACKEND_AUTO, &runq, &err);
    assert_non_null(backend);
    backend_turn(backend); // nothing to do
    assert_true(runq_empty(&runq));
    backend_free(backend);
}

// Forbids io_uring like a container's profile. For a child process: it cannot be undone.
static void forbid_io_uring(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(10);
}

static void test_forbidden_io_uring(void **state)
{
    int status;
    pid_t child = fork();

    (void)state;
    assert_true(child >= 0);
    if (child == 0) {
        struct runq runq;
        struct error err = {""};

        forbid_io_uring();
        runq_init(&runq);
        if (backend_new(BACKEND_IO_URING, &runq, &err) != NULL ||
            strstr(err.text, "use threads") == NULL)
            _exit(1);
        struct backend *backend = backend_new(BACKEND_AUTO, &runq, &err);
        if (backend == NULL || strcmp(backend_name(backend), "threads") != 0)
            _exit(2);
        backend_free(backend);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

#define IO_URING_CASES "* io_uring*"

#define CASE(function, n, name)                                                                    \
    {                                                                                              \
#function " " name, function, setup, teardown, &variants[n]                                \
    }
#define CASES(function)                                                                            \
    CASE(function, 0, "io_uring"), CASE(function, 1, "io_uring direct"),                           \
        CASE(function, 2, "threads"), CASE(function, 3, "threads direct")

// Through the page cache only, on the driven clock.
#define CLOCK_CASE(function, n, name)                                                              \
    {                                                                                              \
#function " " name, function, setup_clock, teardown, &variants[n]                          \
    }
#define CLOCK_CASES(function)                                                                      \
    CLOCK_CASE(function, 0, "io_uring"), CLOCK_CASE(function, 2, "threads")

// The kernel, or a container's profile, may forbid it; the server then takes threads.
static bool has_io_uring(void)
{
    struct runq runq;
    struct error err;
    struct backend *backend;

    runq_init(&runq);
    backend = backend_new(BACKEND_IO_URING, &runq, &err);
    if (backend == NULL)
        fprintf(stderr, "cases with io_uring are left out: %s\n", err.text);
    backend_free(backend);
    return backend != NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASES(test_round_trip),
        CASES(test_many_buffers),
        CASES(test_end_of_file),
        CASES(test_empty_requests),
        CASES(test_many_in_flight),
        CASES(test_neighbours),
        CASES(test_wake_up),
        CASES(test_zero),
        CASES(test_punch),
        CASES(test_allocate_and_truncate),
        CASES(test_error),
        CASES(test_no_flush),
        CASES(test_extents),
        CASES(test_open_errors),
        CASES(test_open_locks),
        CASES(test_cold_edges),
        CLOCK_CASES(test_barriers_of_many_clients),
        CLOCK_CASES(test_barriers_of_one_client),
        CLOCK_CASES(test_barriers_with_much_to_write),
        CLOCK_CASES(test_barriers_beside_other_work),
        CLOCK_CASES(test_barriers_that_are_slow),
        cmocka_unit_test(test_auto),
        cmocka_unit_test(test_forbidden_io_uring),
    };

    if (!has_io_uring())
        cmocka_set_skip_filter(IO_URING_CASES);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
