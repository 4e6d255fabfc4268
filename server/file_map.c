// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // RUSAGE_THREAD
#include "server/file_map.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/clock.h"
#include "server/file_pace.h"
#include "server/file_guarded_copy.h"

// Unit in which mincore(2) reports. On machines with larger pages nothing is mapped.
#define PAGE_BYTES 4096u
#define WINDOW_PAGES (FILE_MAP_WINDOW_BYTES / PAGE_BYTES)

// Nanoseconds that a read saves by a mapping: the system call, and half of the cost of its bytes.
#define SAVED_NS(bytes) (1000u + (bytes) / 10u)
// A window is mapped when reads that missed it have cost this many nanoseconds: the price of
// mapping it, of the faults of its pages and of unmapping it. So the total cost is at most twice
// the optimum.
#define MAP_COST_NS 150000u
// Lost nanoseconds at which the kernel is asked again which pages are in memory; doubles each time.
#define ASK_COST_NS 10000u
#define ASK_COST_MAX_NS 100000000u

// Most bytes on loan at a time: 16 replies of 256 KiB. Loans of slow clients are settled in one go,
// and nobody is served meanwhile.
#define LOAN_BYTES_MAX (4u << 20)

// Distance between the first windows of two files in the table. Odd, because limits are powers of
// two.
#define FILE_DISTANCE 1021u

// Ticks that an unused window stays mapped while others are used: long enough for a slow reader of
// much data.
#define IDLE_TICKS 10

// Windows that are unmapped in one turn, at 30 to 90 us each.
#define SWEEP_WINDOWS 4u

//   FREE ──a read missed it──> WATCHED ──many did──> MAPPED
//    ^                                                  │
//    └── idle, the file is closed, or another window needs the place (from WATCHED, too)
enum map_window_state {
    WINDOW_FREE,
    // Missed reads are counted; no page is known to be in memory.
    WINDOW_WATCHED,
    // Mapped at its place in memory.
    WINDOW_MAPPED,
};

struct map_window {
    enum map_window_state state;
    int fd;
    // Used since the last tick.
    bool used;
    // Ticks without use before the last one.
    uint8_t idle;
    // Nanoseconds lost by reads that missed it.
    uint64_t lost;
    // Value of lost at which the window is mapped or asked again.
    uint64_t lost_next;
    // Number of the window in the file.
    uint64_t number;
    // Bytes of it on loan; it stays mapped while there are any.
    uint32_t loan_bytes;
    uint64_t resident[WINDOW_PAGES / 64];
};

// ---- Windows ------------------------------------------------------------------------------------

static struct map_window *window_of(const struct file_map *map, int fd, uint64_t number)
{
    // Neighbouring windows of a file have neighbouring places, so they do not compete for one.
    return &map->windows[(number + (uint64_t)fd * FILE_DISTANCE) % map->count];
}

static bool window_is(const struct map_window *window, int fd, uint64_t number)
{
    return window->state != WINDOW_FREE && window->fd == fd && window->number == number;
}

static char *file_map_address_of(const struct file_map *map, const struct map_window *window)
{
    return map->base + (size_t)(window - map->windows) * FILE_MAP_WINDOW_BYTES;
}

// Reserves address space without memory behind it. at: NULL, or a mapping to be replaced.
static void *set_aside(void *at, size_t bytes)
{
    return mmap(at, bytes, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at != NULL ? MAP_FIXED : 0), -1, 0);
}

static void window_unmap(struct file_map *map, struct map_window *window)
{
    assert(window->loan_bytes == 0);
    if (window->state == WINDOW_MAPPED) {
        map->broken |=
            set_aside(file_map_address_of(map, window), FILE_MAP_WINDOW_BYTES) == MAP_FAILED;
        map->mapped--;
    }
    memset(window, 0, sizeof(*window));
}

// The record of resident pages was wrong: serves nothing from the window until it is asked again.
static void window_doubt(struct map_window *window)
{
    memset(window->resident, 0, sizeof(window->resident));
    if (window->state == WINDOW_MAPPED) {
        window->lost = 0;
        window->lost_next = ASK_COST_NS;
    }
}

// Asks the kernel which pages are in memory. Returns true if any is.
static bool window_ask(const struct file_map *map, struct map_window *window)
{
    unsigned char pages[WINDOW_PAGES] = {0};
    bool any = false;

    memset(window->resident, 0, sizeof(window->resident));
    if (mincore(file_map_address_of(map, window), FILE_MAP_WINDOW_BYTES, pages) < 0) {
        return false;
    }
    for (size_t i = 0; i < WINDOW_PAGES; i++) {
        window->resident[i / 64] |= (uint64_t)(pages[i] & 1) << i % 64;
        any |= pages[i] & 1;
    }
    return any;
}

// Returns true if the kernel tells this process which pages of the file are in memory. A process
// that neither owns the file nor may write it gets the answer that all are. Only owners and root
// pass this test; root may still lack the right, and then copies wait for disks, which penalties
// make rare.
static bool may_ask(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && (st.st_uid == geteuid() || geteuid() == 0);
}

// Maps the window, unless none of its pages is in memory.
static void window_map(struct file_map *map, struct map_window *window)
{
    if (map->broken || !may_ask(window->fd)) {
        return;
    }
    if (mmap(file_map_address_of(map, window), FILE_MAP_WINDOW_BYTES, PROT_READ,
             MAP_SHARED | MAP_FIXED, window->fd,
             (off_t)(window->number * FILE_MAP_WINDOW_BYTES)) == MAP_FAILED) {
        map->broken = true;
        return;
    }
    window->state = WINDOW_MAPPED;
    map->mapped++;
    if (!window_ask(map, window)) {
        map->broken |=
            set_aside(file_map_address_of(map, window), FILE_MAP_WINDOW_BYTES) == MAP_FAILED;
        window->state = WINDOW_WATCHED;
        map->mapped--;
    }
}

static bool pages_resident(const struct map_window *window, size_t first, size_t last)
{
    for (size_t i = first; i <= last; i++) {
        if ((window->resident[i / 64] >> i % 64 & 1) == 0) {
            return false;
        }
    }
    return true;
}

// Returns the end of the window that contains at, or end if that comes first.
static uint64_t file_map_part_end(uint64_t at, uint64_t end)
{
    uint64_t next = (at / FILE_MAP_WINDOW_BYTES + 1) * FILE_MAP_WINDOW_BYTES;

    return next < end ? next : end;
}

static bool all_resident(const struct file_map *map, int fd, uint64_t begin, uint64_t end)
{
    while (begin < end) {
        uint64_t number = begin / FILE_MAP_WINDOW_BYTES;
        uint64_t start = number * FILE_MAP_WINDOW_BYTES;
        uint64_t stop = file_map_part_end(begin, end);
        struct map_window *window = window_of(map, fd, number);

        if (window->state != WINDOW_MAPPED || !window_is(window, fd, number) ||
            !pages_resident(window, (begin - start) / PAGE_BYTES,
                            (stop - 1 - start) / PAGE_BYTES)) {
            return false;
        }
        window->used = true;
        begin = stop;
    }
    return true;
}

// ---- Reads --------------------------------------------------------------------------------------

static bool copy_all(const struct file_map *map, int fd, const struct file_io *io)
{
    uint64_t offset = io->offset;

    for (int i = 0; i < io->iovcnt; i++) {
        char *to = io->iov[i].iov_base;
        size_t left = io->iov[i].iov_len;

        while (left > 0) {
            const struct map_window *window = window_of(map, fd, offset / FILE_MAP_WINDOW_BYTES);
            const char *from = file_map_address_of(map, window) + offset % FILE_MAP_WINDOW_BYTES;
            size_t bytes = (size_t)(file_map_part_end(offset, offset + left) - offset);

            if (!file_guarded_copy(to, from, bytes)) {
                return false;
            }
            to += bytes;
            left -= bytes;
            offset += bytes;
        }
    }
    return true;
}

static long disk_faults(void)
{
    struct rusage usage;

    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_majflt : 0;
}

// Returns true if reads may be served from mappings at present. After a read had to wait for a disk
// none are for a while, longer each time that this happens again soon.
static bool is_quick(struct file_map *map)
{
    uint64_t now = clock_now_ns();

    if (!disk_pace_allows(&map->pace, now)) {
        return false;
    }
    if (!disk_pace_asks(&map->pace, now) || disk_pace_note(&map->pace, now, disk_faults())) {
        return true;
    }
    for (uint32_t i = 0; i < map->count; i++) {
        window_doubt(&map->windows[i]);
    }
    return false;
}

// Returns true if all bytes of the read are in memory.
static bool has(struct file_map *map, int fd, const struct file_io *io)
{
    if (map->mapped == 0 || !all_resident(map, fd, io->offset, io->offset + io->length) ||
        !is_quick(map)) {
        return false;
    }
    map->used = true;
    map->idle = false;
    return true;
}

bool file_map_read(struct file_map *map, int fd, const struct file_io *io)
{
    if (!has(map, fd, io)) {
        return false;
    }
    if (!copy_all(map, fd, io)) {
        window_doubt(window_of(map, fd, io->offset / FILE_MAP_WINDOW_BYTES));
        window_doubt(window_of(map, fd, (io->offset + io->length - 1) / FILE_MAP_WINDOW_BYTES));
        return false;
    }
    return true;
}

// Counts bytes from at as on loan, or, with returned, as back.
static void note_loan(struct file_map *map, const char *at, uint64_t bytes, bool returned)
{
    uint64_t begin = (uint64_t)(at - map->base);
    uint64_t end = begin + bytes;

    while (begin < end) {
        struct map_window *window = &map->windows[begin / FILE_MAP_WINDOW_BYTES];
        uint32_t part = (uint32_t)(file_map_part_end(begin, end) - begin);

        assert(!returned || window->loan_bytes >= part);
        window->loan_bytes += returned ? -part : part;
        begin += part;
    }
    map->loan_bytes += returned ? -bytes : bytes;
}

const void *file_map_loan_take(struct file_map *map, int fd, const struct file_io *io)
{
    const char *at;

    if (map->loan_bytes + io->length > LOAN_BYTES_MAX || !has(map, fd, io)) {
        return NULL;
    }
    // Adjacent windows of the file are adjacent in memory, except behind the last place.
    at = file_map_address_of(map, window_of(map, fd, io->offset / FILE_MAP_WINDOW_BYTES)) +
         io->offset % FILE_MAP_WINDOW_BYTES;
    if (io->length > (uint64_t)map->count * FILE_MAP_WINDOW_BYTES - (uint64_t)(at - map->base)) {
        return NULL;
    }
    note_loan(map, at, io->length, false);
    return at;
}

// Reads bytes that the mapping cannot give: zeros behind the end of the file, or an error.
static bool read_again(const struct map_window *window, void *to, uint64_t offset, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n =
            pread(window->fd, to, bytes, (off_t)(window->number * FILE_MAP_WINDOW_BYTES + offset));

        if (n < 0) {
            return false;
        }
        if (n == 0) {
            memset(to, 0, bytes);
            return true;
        }
        to = (char *)to + n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return true;
}

bool file_map_loan_copy(struct file_map *map, void *to, const void *from, size_t bytes)
{
    uint64_t begin = (uint64_t)((const char *)from - map->base);
    uint64_t end = begin + bytes;

    while (begin < end) {
        struct map_window *window = &map->windows[begin / FILE_MAP_WINDOW_BYTES];
        size_t part = (size_t)(file_map_part_end(begin, end) - begin);

        if (!file_guarded_copy(to, map->base + begin, part)) {
            window_doubt(window);
            if (!read_again(window, to, begin % FILE_MAP_WINDOW_BYTES, part)) {
                return false;
            }
        }
        to = (char *)to + part;
        begin += part;
    }
    return true;
}

void file_map_loan_return(struct file_map *map, const void *at, uint64_t bytes)
{
    note_loan(map, at, bytes, true);
}

void file_map_missed(struct file_map *map, int fd, const struct file_io *io)
{
    uint64_t number = io->offset / FILE_MAP_WINDOW_BYTES;
    struct map_window *window;

    if (map->windows == NULL) {
        return;
    }
    window = window_of(map, fd, number);
    if (!window_is(window, fd, number)) {
        if (window->used || window->loan_bytes > 0) {
            return;
        }
        window_unmap(map, window);
        *window = (struct map_window){
            .state = WINDOW_WATCHED, .fd = fd, .number = number, .lost_next = MAP_COST_NS};
    }
    window->used = true;
    window->lost += SAVED_NS(io->length);
    if (window->lost < window->lost_next) {
        return;
    }
    window->lost = 0;
    if (window->state == WINDOW_WATCHED) {
        window_map(map, window);
        window->lost_next = window->state == WINDOW_MAPPED ? ASK_COST_NS : ASK_COST_MAX_NS;
    } else {
        window_ask(map, window);
        window->lost_next *= window->lost_next < ASK_COST_MAX_NS ? 2 : 1;
    }
}

// ---- Life ---------------------------------------------------------------------------------------

static bool is_idle(const struct file_map *map, const struct map_window *window)
{
    return window->state == WINDOW_MAPPED && window->loan_bytes == 0 &&
           (map->idle || window->idle >= IDLE_TICKS);
}

// Unmaps some windows, and posts itself again until all were checked.
static void on_sweep(struct task *task)
{
    struct file_map *map = (struct file_map *)task;
    uint32_t unmapped = 0;

    while (map->sweep < map->count && unmapped < SWEEP_WINDOWS) {
        struct map_window *window = &map->windows[map->sweep++];

        if (is_idle(map, window)) {
            window_unmap(map, window);
            unmapped++;
        }
    }
    if (map->sweep < map->count) {
        runq_post(map->runq, &map->task);
    }
}

void file_map_init(struct file_map *map, struct runq *runq)
{
    *map = (struct file_map){.task = {.run = on_sweep}, .runq = runq};
}

void file_map_set_limit(struct file_map *map, uint64_t bytes)
{
    struct rlimit space;
    uint64_t count = bytes / FILE_MAP_WINDOW_BYTES;

    // The rest of the process needs address space, too.
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY &&
        count > space.rlim_cur / 4 / FILE_MAP_WINDOW_BYTES) {
        count = space.rlim_cur / 4 / FILE_MAP_WINDOW_BYTES;
    }
    count = count < FILE_MAP_WINDOWS_MAX ? count : FILE_MAP_WINDOWS_MAX;
    if (count == 0 || sysconf(_SC_PAGESIZE) != PAGE_BYTES) {
        return;
    }
    map->base = set_aside(NULL, (size_t)count * FILE_MAP_WINDOW_BYTES);
    if (map->base == MAP_FAILED) {
        return;
    }
    map->windows = calloc(count, sizeof(*map->windows));
    if (map->windows == NULL) {
        munmap(map->base, (size_t)count * FILE_MAP_WINDOW_BYTES);
        return;
    }
    map->count = (uint32_t)count;
    map->pace.faults = disk_faults();
    file_guarded_copy_init();
}

void file_map_destroy(struct file_map *map)
{
    assert(map->loan_bytes == 0);
    if (map->windows != NULL && !map->broken) {
        munmap(map->base, (size_t)map->count * FILE_MAP_WINDOW_BYTES);
    }
    free(map->windows);
}

void file_map_forget(struct file_map *map, int fd)
{
    for (uint32_t i = 0; i < map->count; i++) {
        if (map->windows[i].state != WINDOW_FREE && map->windows[i].fd == fd) {
            window_unmap(map, &map->windows[i]);
        }
    }
}

bool file_map_tick(struct file_map *map)
{
    bool any_idle = false;

    map->idle = !map->used;
    map->used = false;
    map->pace.faults = disk_faults();
    for (uint32_t i = 0; i < map->count; i++) {
        struct map_window *window = &map->windows[i];

        window->idle = window->used ? 0 : window->idle + (window->idle < IDLE_TICKS);
        window->used = false;
        if (window->state == WINDOW_MAPPED && window->lost_next > ASK_COST_NS) {
            window->lost_next /= 2;
        }
        any_idle |= is_idle(map, window);
    }
    if (any_idle && !map->task.queued) {
        map->sweep = 0;
        runq_post(map->runq, &map->task);
    }
    return map->mapped > 0;
}
