// SPDX-License-Identifier: Apache-2.0
// test_file_map.c: reads out of a mapping: their results, and the absence of harm from changes of
// the file or of memory.
#define _GNU_SOURCE 1 // RUSAGE_THREAD
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "server/file_map.h"
#include "server/file_pace.h"

#define WINDOWS 6u
#define FILE_BYTES (WINDOWS * FILE_MAP_WINDOW_BYTES)
// More reads than it takes to have a window mapped.
#define OFTEN 1000

struct fixture {
    char path[64];
    int fd;
    unsigned char *content;
    struct runq runq;
    struct file_map map;
};

static int setup(void **state)
{
    struct fixture *x = calloc(1, sizeof(*x));

    // Not in /tmp, which may be a tmpfs, whose pages never leave memory.
    strcpy(x->path, "/var/tmp/lazycow-test-map-XXXXXX");
    x->fd = mkstemp(x->path);
    assert_true(x->fd >= 0);
    x->content = malloc(FILE_BYTES);
    for (size_t i = 0; i < FILE_BYTES; i++) {
        x->content[i] = (unsigned char)((i * 2654435761u) >> 16);
    }
    // Page by page, so that the kernel can drop them one by one.
    for (size_t i = 0; i < FILE_BYTES; i += 4096) {
        assert_int_equal(pwrite(x->fd, x->content + i, 4096, (off_t)i), 4096);
    }
    runq_init(&x->runq);
    file_map_init(&x->map, &x->runq);
    *state = x;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *x = *state;

    file_map_destroy(&x->map);
    close(x->fd);
    unlink(x->path);
    free(x->content);
    free(x);
    return 0;
}

static bool read_at(struct fixture *x, void *buf, uint64_t offset, size_t length)
{
    // In two pieces, the first of an odd length.
    size_t first = length > 1 ? length / 2 | 1 : length;
    struct iovec iov[2] = {{.iov_base = buf, .iov_len = first},
                           {.iov_base = (char *)buf + first, .iov_len = length - first}};
    struct file_io io = {
        .kind = FILE_READ, .offset = offset, .length = length, .iov = iov, .iovcnt = 2};

    if (file_map_read(&x->map, x->fd, &io)) {
        return true;
    }
    file_map_missed(&x->map, x->fd, &io);
    return false;
}

// Reads there often. Returns how many reads were copied; each of these was right.
static unsigned copied_of(struct fixture *x, uint64_t offset, size_t length)
{
    unsigned char *buf = malloc(length);
    unsigned copied = 0;

    for (int i = 0; i < OFTEN; i++) {
        memset(buf, 0xee, length);
        if (read_at(x, buf, offset, length)) {
            copied++;
            assert_memory_equal(buf, x->content + offset, length);
        }
    }
    free(buf);
    return copied;
}

static void run(struct fixture *x)
{
    while (runq_run(&x->runq)) {
    }
}

static void nothing_is_mapped_at_first(void **state)
{
    struct fixture *x = *state;

    assert_int_equal(copied_of(x, 0, 4096), 0);
    file_map_set_limit(&x->map, FILE_MAP_WINDOW_BYTES - 1);
    assert_int_equal(copied_of(x, 0, 4096), 0);
}

static void what_is_read_often_is_copied(void **state)
{
    static const struct {
        uint64_t offset;
        size_t length;
    } reads[] = {
        {0, 4096},
        {1, 1},
        {FILE_MAP_WINDOW_BYTES + 4095, 2},
        {FILE_MAP_WINDOW_BYTES + 70001, 300001},
        {FILE_BYTES - 4096, 4096},
    };
    struct fixture *x = *state;

    file_map_set_limit(&x->map, FILE_BYTES);
    for (size_t i = 0; i < sizeof(reads) / sizeof(reads[0]); i++) {
        assert_in_range(copied_of(x, reads[i].offset, reads[i].length), OFTEN * 3 / 4, OFTEN);
    }
    // Across windows, when both are mapped.
    copied_of(x, 2 * FILE_MAP_WINDOW_BYTES, 1);
    copied_of(x, 3 * FILE_MAP_WINDOW_BYTES, 1);
    assert_int_equal(copied_of(x, 3 * FILE_MAP_WINDOW_BYTES - 5000, 10000), OFTEN);
}

static void new_content_is_seen(void **state)
{
    struct fixture *x = *state;

    file_map_set_limit(&x->map, FILE_BYTES);
    copied_of(x, 8192, 4096);
    memset(x->content + 8192, 0x5a, 2000);
    assert_int_equal(pwrite(x->fd, x->content + 8192, 2000, 8192), 2000);
    assert_int_equal(copied_of(x, 8192, 4096), OFTEN);
}

static void the_end_of_the_file_is_left_to_others(void **state)
{
    struct fixture *x = *state;
    unsigned char buf[8192];

    file_map_set_limit(&x->map, 2 * FILE_BYTES);
    copied_of(x, FILE_BYTES - 4096, 4096);
    assert_false(read_at(x, buf, FILE_BYTES - 4096, 8192));
    for (int i = 0; i < OFTEN; i++) {
        assert_false(read_at(x, buf, FILE_BYTES, 512));
    }
}

// Another program cuts the file: reading a page that is gone would raise SIGBUS.
static void a_cut_file_does_no_harm(void **state)
{
    struct fixture *x = *state;
    unsigned char buf[4096];

    file_map_set_limit(&x->map, FILE_BYTES);
    assert_in_range(copied_of(x, 65536, 4096), 1, OFTEN);
    assert_int_equal(ftruncate(x->fd, 4096), 0);
    assert_false(read_at(x, buf, 65536, 4096));
    assert_int_equal(copied_of(x, 65536, 4096), 0);
    assert_in_range(copied_of(x, 0, 4096), 1, OFTEN);
}

static void a_limit_is_kept(void **state)
{
    struct fixture *x = *state;

    file_map_set_limit(&x->map, 2 * FILE_MAP_WINDOW_BYTES);
    for (unsigned i = 0; i < 4 * WINDOWS; i++) {
        copied_of(x, i % WINDOWS * FILE_MAP_WINDOW_BYTES, 4096);
        assert_in_range(x->map.mapped, 1, 2);
    }
    // The first two keep their places while they are used, and lose them later.
    assert_int_equal(copied_of(x, 0, 4096), OFTEN);
    assert_int_equal(copied_of(x, 2 * FILE_MAP_WINDOW_BYTES, 4096), 0);
    file_map_tick(&x->map);
    assert_in_range(copied_of(x, 2 * FILE_MAP_WINDOW_BYTES, 4096), 1, OFTEN);
}

static void what_is_idle_is_unmapped(void **state)
{
    struct fixture *x = *state;

    file_map_set_limit(&x->map, FILE_BYTES);
    for (unsigned i = 0; i < WINDOWS; i++) {
        copied_of(x, i * FILE_MAP_WINDOW_BYTES, 4096);
    }
    assert_int_equal(x->map.mapped, WINDOWS);
    assert_true(file_map_tick(&x->map));
    run(x);
    assert_int_equal(x->map.mapped, WINDOWS);
    assert_true(file_map_tick(&x->map));
    run(x);
    assert_int_equal(x->map.mapped, 0);
    assert_false(file_map_tick(&x->map));
    assert_in_range(copied_of(x, 0, 4096), 1, OFTEN - 1);
}

// A window is kept for some ticks longer while others are used.
static void what_is_idle_for_long_is_unmapped(void **state)
{
    struct fixture *x = *state;
    unsigned ticks = 0;

    file_map_set_limit(&x->map, FILE_BYTES);
    copied_of(x, 0, 4096);
    copied_of(x, FILE_MAP_WINDOW_BYTES, 4096);
    while (x->map.mapped == 2 && ticks < 100) {
        assert_int_equal(copied_of(x, 0, 4096), OFTEN);
        file_map_tick(&x->map);
        run(x);
        ticks++;
    }
    assert_int_equal(x->map.mapped, 1);
    assert_in_range(ticks, 5, 20);
    assert_int_equal(copied_of(x, 0, 4096), OFTEN);
}

static void a_closed_file_is_forgotten(void **state)
{
    struct fixture *x = *state;

    file_map_set_limit(&x->map, FILE_BYTES);
    copied_of(x, 0, 4096);
    file_map_forget(&x->map, x->fd);
    assert_int_equal(x->map.mapped, 0);
}

static const void *take(struct fixture *x, uint64_t offset, size_t length)
{
    struct file_io io = {.kind = FILE_READ, .offset = offset, .length = length};

    return file_map_loan_take(&x->map, x->fd, &io);
}

static void what_is_read_often_can_be_a_loan(void **state)
{
    struct fixture *x = *state;
    const uint64_t across = FILE_MAP_WINDOW_BYTES - 1000;
    const void *loan;

    assert_null(take(x, 4096, 4096));
    file_map_set_limit(&x->map, FILE_BYTES);
    assert_null(take(x, 4096, 4096));
    for (unsigned i = 0; i < WINDOWS; i++) {
        copied_of(x, i * FILE_MAP_WINDOW_BYTES, 4096);
    }
    loan = take(x, 4095, 5000);
    assert_non_null(loan);
    assert_memory_equal(loan, x->content + 4095, 5000);
    assert_int_equal(pwrite(x->fd, "new", 3, 5000), 3);
    assert_memory_equal((const char *)loan + 905, "new", 3);
    file_map_loan_return(&x->map, loan, 5000);
    // From one window into the next.
    loan = take(x, across, 5000);
    assert_non_null(loan);
    assert_memory_equal(loan, x->content + across, 5000);
    file_map_loan_return(&x->map, loan, 2000);
    file_map_loan_return(&x->map, (const char *)loan + 2000, 3000);
    assert_int_equal(x->map.loan_bytes, 0);
    // The first window's place is also that of the one behind the last; the file has none there.
    assert_null(take(x, FILE_BYTES - 1000, 2000));
}

// Only neighbours in memory can be one loan.
static void what_is_not_together_is_copied(void **state)
{
    struct fixture *x = *state;
    unsigned char *buf = malloc(8192);
    unsigned loans = 0;

    file_map_set_limit(&x->map, 4 * FILE_MAP_WINDOW_BYTES);
    for (unsigned i = 0; i < 4; i++) {
        copied_of(x, (i + 1) * FILE_MAP_WINDOW_BYTES, 4096);
        copied_of(x, (i + 2) * FILE_MAP_WINDOW_BYTES - 4096, 4096);
    }
    assert_int_equal(x->map.mapped, 4);
    for (unsigned i = 2; i < 5; i++) {
        const void *at = take(x, i * FILE_MAP_WINDOW_BYTES - 4096, 8192);

        if (at != NULL) {
            assert_memory_equal(at, x->content + i * FILE_MAP_WINDOW_BYTES - 4096, 8192);
            file_map_loan_return(&x->map, at, 8192);
            loans++;
        }
        assert_true(read_at(x, buf, i * FILE_MAP_WINDOW_BYTES - 4096, 8192));
        assert_memory_equal(buf, x->content + i * FILE_MAP_WINDOW_BYTES - 4096, 8192);
    }
    // Four windows in four places: two of them are separated by the last place, unless they begin
    // there.
    assert_in_range(loans, 2, 3);
    free(buf);
}

static void a_loan_can_be_copied(void **state)
{
    struct fixture *x = *state;
    const uint64_t across = FILE_MAP_WINDOW_BYTES - 6000;
    unsigned char *buf = calloc(1, 12000);
    const char *loan;

    file_map_set_limit(&x->map, FILE_BYTES);
    copied_of(x, FILE_MAP_WINDOW_BYTES - 8192, 8192);
    copied_of(x, FILE_MAP_WINDOW_BYTES, 8192);
    loan = take(x, across, 12000);
    assert_non_null(loan);
    assert_true(file_map_loan_copy(&x->map, buf, loan + 1, 11999));
    assert_memory_equal(buf, x->content + across + 1, 11999);
    // Somebody cuts the file.
    assert_int_equal(ftruncate(x->fd, (off_t)across + 100), 0);
    memset(x->content + across + 100, 0, 12000);
    assert_true(file_map_loan_copy(&x->map, buf, loan, 12000));
    assert_memory_equal(buf, x->content + across, 12000);
    file_map_loan_return(&x->map, loan, 12000);
    assert_null(take(x, across, 100));
    free(buf);
}

static void a_loan_stays_mapped(void **state)
{
    struct fixture *x = *state;
    const void *loan;

    file_map_set_limit(&x->map, 2 * FILE_MAP_WINDOW_BYTES);
    copied_of(x, 0, 4096);
    loan = take(x, 0, 4096);
    assert_non_null(loan);
    // Neither time nor other windows take its place.
    for (int i = 0; i < 30; i++) {
        file_map_tick(&x->map);
        run(x);
        copied_of(x, 2 * FILE_MAP_WINDOW_BYTES, 4096);
    }
    assert_memory_equal(loan, x->content, 4096);
    file_map_loan_return(&x->map, loan, 4096);
    file_map_tick(&x->map);
    assert_in_range(copied_of(x, 2 * FILE_MAP_WINDOW_BYTES, 4096), 1, OFTEN);
}

// A process that does not own the file is not told which pages are in memory.
static void a_file_of_others_is_not_mapped(void **state)
{
    struct fixture *x = *state;

    if (geteuid() != 0) {
        skip(); // every file that this process could create is its own
    }
    file_map_set_limit(&x->map, FILE_BYTES);
    assert_int_equal(seteuid(65534), 0);
    assert_int_equal(copied_of(x, 0, 4096), 0);
    assert_int_equal(seteuid(0), 0);
}

static long disk_faults(void)
{
    struct rusage usage;

    assert_int_equal(getrusage(RUSAGE_THREAD, &usage), 0);
    return usage.ru_majflt;
}

// Drops all pages of the file that can leave memory.
static void drop_pages(const struct fixture *x)
{
    assert_int_equal(fdatasync(x->fd), 0);
    assert_int_equal(posix_fadvise(x->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
}

static void what_is_not_in_memory_is_left_to_others(void **state)
{
    struct fixture *x = *state;
    unsigned char buf[4096];
    long faults;

    file_map_set_limit(&x->map, FILE_BYTES);
    drop_pages(x);
    // One page comes back, and perhaps some behind it.
    assert_int_equal(posix_fadvise(x->fd, 0, 0, POSIX_FADV_RANDOM), 0);
    assert_int_equal(pread(x->fd, buf, 4096, 0), 4096);
    assert_in_range(copied_of(x, 0, 4096), 1, OFTEN);
    faults = disk_faults();
    for (int i = 0; i < OFTEN; i++) {
        assert_false(read_at(x, buf, FILE_MAP_WINDOW_BYTES / 2, 4096));
        assert_false(read_at(x, buf, 0, FILE_MAP_WINDOW_BYTES));
    }
    assert_int_equal(disk_faults(), faults);
}

// A page that has left memory is still read, slowly; then the mapping is not used for a while. The
// map notices when this thread has waited for a disk since the last question.
static void a_disk_is_not_waited_for_again(void **state)
{
    struct fixture *x = *state;
    unsigned char buf[4096];

    file_map_set_limit(&x->map, FILE_BYTES);
    copied_of(x, 0, 4096);
    assert_true(read_at(x, buf, 8192, 4096));
    x->map.pace.faults = disk_faults() - 1;
    x->map.pace.asked_at = 0; // long ago
    assert_false(read_at(x, buf, 8192, 4096));
    assert_true(x->map.pace.retry_at > 0);
    x->map.pace.retry_at = UINT64_MAX; // for as long as this test may take
    assert_int_equal(copied_of(x, 8192, 4096), 0);
    x->map.pace.retry_at = 0;
    x->map.pace.faults = disk_faults();
    assert_true(read_at(x, buf, 8192, 4096));
    assert_memory_equal(buf, x->content + 8192, 4096);
}

int main(void)
{
#define CASE(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(nothing_is_mapped_at_first),
        CASE(what_is_read_often_is_copied),
        CASE(new_content_is_seen),
        CASE(the_end_of_the_file_is_left_to_others),
        CASE(a_cut_file_does_no_harm),
        CASE(a_limit_is_kept),
        CASE(what_is_idle_is_unmapped),
        CASE(what_is_idle_for_long_is_unmapped),
        CASE(a_closed_file_is_forgotten),
        CASE(what_is_read_often_can_be_a_loan),
        CASE(what_is_not_together_is_copied),
        CASE(a_loan_can_be_copied),
        CASE(a_loan_stays_mapped),
        CASE(a_file_of_others_is_not_mapped),
        CASE(what_is_not_in_memory_is_left_to_others),
        CASE(a_disk_is_not_waited_for_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
