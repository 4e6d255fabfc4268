// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // RUSAGE_THREAD
#include "server/file_map.h"

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/file_pace.h"

// What mincore(2) tells about. Where pages are larger, nothing is mapped.
#define PAGE_BYTES 4096u
#define WINDOW_PAGES (MAP_WINDOW_BYTES / PAGE_BYTES)

// What a copy saves, in nanoseconds: a call, and half of the way of its bytes.
#define SAVED_NS(bytes) (800u + (bytes) / 20u)
// A window is mapped when reads in it have lost so much by not being copied: what mapping it, the
// faults of its pages and unmapping it cost. So it never costs more than twice what is right.
#define MAP_COST_NS 150000u
// The same for asking once more what is in memory; twice as much after each time.
#define ASK_COST_NS 10000u
#define ASK_COST_MAX_NS 100000000u

// A copy that took longer, over what its bytes take, may have waited for a disk. Shorter than any
// disk takes, longer than an interrupt.
#define SLOW_COPY_NS 30000u
#define COPY_BYTES_PER_NS 1u

// How far the first windows of two files are from each other. Odd, since limits are powers of two.
#define FILE_DISTANCE 1021u

// Ticks that a window stays mapped without being used while others are: long enough for a slow
// reader of much.
#define IDLE_TICKS 10

// Windows that are unmapped in one go: 30 to 90 us each.
#define SWEEP_WINDOWS 4u

struct map_window {
    int fd;
    bool used;          // since the last tick
    uint8_t idle;       // ticks before that without use
    uint64_t lost;      // nanoseconds, by reads that were not copied
    uint64_t lost_next; // when this is reached something is done; 0: the place is free
    uint64_t number;    // in the file
    char *address;      // NULL: not mapped
    uint64_t resident[WINDOW_PAGES / 64];
};

// ---- Copies that may fail -----------------------------------------------------------------------

static _Thread_local sigjmp_buf *copy_guard;

static void on_sigbus(int number)
{
    if (copy_guard != NULL) {
        siglongjmp(*copy_guard, 1);
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_sigbus(void)
{
    // Not blocked while it runs: it does not return.
    struct sigaction action = {.sa_handler = on_sigbus, .sa_flags = SA_NODEFER};
    sigset_t set;

    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
    // Whoever started this process may have blocked it, and then it would be the end.
    sigemptyset(&set);
    sigaddset(&set, SIGBUS);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

// Returns false when the bytes cannot be had.
static bool copy(void *to, const void *from, size_t bytes)
{
    sigjmp_buf env;

    if (sigsetjmp(env, 0) != 0) {
        copy_guard = NULL;
        return false;
    }
    copy_guard = &env;
    atomic_signal_fence(memory_order_seq_cst);
    memcpy(to, from, bytes);
    atomic_signal_fence(memory_order_seq_cst);
    copy_guard = NULL;
    return true;
}

// ---- Windows ------------------------------------------------------------------------------------

static struct map_window *window_of(const struct file_map *map, int fd, uint64_t number)
{
    // Neighbours have neighbouring places, so those of a file do not get into each other's way.
    return &map->windows[(number + (uint64_t)fd * FILE_DISTANCE) % map->count];
}

static bool window_is(const struct map_window *window, int fd, uint64_t number)
{
    return window->lost_next != 0 && window->fd == fd && window->number == number;
}

static void window_unmap(struct file_map *map, struct map_window *window)
{
    if (window->address != NULL) {
        munmap(window->address, MAP_WINDOW_BYTES);
        map->mapped--;
    }
    memset(window, 0, sizeof(*window));
}

// Asks which of its pages are in memory. Returns whether any is.
static bool window_ask(struct map_window *window)
{
    unsigned char pages[WINDOW_PAGES] = {0};
    bool any = false;

    memset(window->resident, 0, sizeof(window->resident));
    if (mincore(window->address, MAP_WINDOW_BYTES, pages) < 0) {
        return false;
    }
    for (size_t i = 0; i < WINDOW_PAGES; i++) {
        window->resident[i / 64] |= (uint64_t)(pages[i] & 1) << i % 64;
        any |= pages[i] & 1;
    }
    return any;
}

// Whether the kernel tells this process what of the file is in memory. To those who neither own nor may
// write the file it says that all is; of them only owners are taken for such here, and root, who
// may lack the right: then copies wait for disks, and penalties make that rare.
static bool is_told(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && (st.st_uid == geteuid() || geteuid() == 0);
}

// Maps it, unless nothing of it is in memory.
static void window_map(struct file_map *map, struct map_window *window)
{
    void *address;

    if (!is_told(window->fd)) {
        return;
    }
    address = mmap(NULL, MAP_WINDOW_BYTES, PROT_READ, MAP_SHARED, window->fd,
                   (off_t)(window->number * MAP_WINDOW_BYTES));
    if (address == MAP_FAILED) {
        return;
    }
    window->address = address;
    if (window_ask(window)) {
        map->mapped++;
    } else {
        munmap(address, MAP_WINDOW_BYTES);
        window->address = NULL;
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

static bool all_resident(const struct file_map *map, int fd, uint64_t begin, uint64_t end)
{
    while (begin < end) {
        uint64_t number = begin / MAP_WINDOW_BYTES;
        uint64_t start = number * MAP_WINDOW_BYTES;
        uint64_t stop = end < start + MAP_WINDOW_BYTES ? end : start + MAP_WINDOW_BYTES;
        struct map_window *window = window_of(map, fd, number);

        if (!window_is(window, fd, number) || window->address == NULL ||
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
            size_t skip = (size_t)(offset % MAP_WINDOW_BYTES);
            size_t bytes = left < MAP_WINDOW_BYTES - skip ? left : MAP_WINDOW_BYTES - skip;

            if (!copy(to, window_of(map, fd, offset / MAP_WINDOW_BYTES)->address + skip, bytes)) {
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

// A copy took long: if that was because of a disk, none are made for a while, which is longer each
// time that this happens soon again.
static void copy_was_slow(struct file_map *map, uint64_t now)
{
    long faults = disk_faults();

    if (faults == map->faults) {
        return;
    }
    map->faults = faults;
    map->penalty = pace_penalty(map->penalty, now - map->retry_at < map->penalty);
    map->retry_at = now + map->penalty;
    // What is known of the pages was wrong, and will be asked again soon.
    for (uint32_t i = 0; i < map->count; i++) {
        struct map_window *window = &map->windows[i];

        memset(window->resident, 0, sizeof(window->resident));
        if (window->address != NULL) {
            window->lost = 0;
            window->lost_next = ASK_COST_NS;
        }
    }
}

bool map_read(struct file_map *map, int fd, const struct file_io *io)
{
    uint64_t begin;
    uint64_t now;
    bool copied;

    if (map->mapped == 0 || !all_resident(map, fd, io->offset, io->offset + io->length)) {
        return false;
    }
    begin = pace_now();
    if (begin < map->retry_at) {
        return false;
    }
    copied = copy_all(map, fd, io);
    now = pace_now();
    if (now - begin > SLOW_COPY_NS + io->length / COPY_BYTES_PER_NS) {
        copy_was_slow(map, now);
    }
    if (!copied) {
        window_unmap(map, window_of(map, fd, io->offset / MAP_WINDOW_BYTES));
        window_unmap(map, window_of(map, fd, (io->offset + io->length - 1) / MAP_WINDOW_BYTES));
    }
    map->used = true;
    map->idle = false;
    return copied;
}

void map_missed(struct file_map *map, int fd, const struct file_io *io)
{
    uint64_t number = io->offset / MAP_WINDOW_BYTES;
    struct map_window *window;

    if (map->windows == NULL) {
        return;
    }
    window = window_of(map, fd, number);
    if (!window_is(window, fd, number)) {
        if (window->used) {
            return;
        }
        window_unmap(map, window);
        *window = (struct map_window){.fd = fd, .number = number, .lost_next = MAP_COST_NS};
    }
    window->used = true;
    window->lost += SAVED_NS(io->length);
    if (window->lost < window->lost_next) {
        return;
    }
    window->lost = 0;
    if (window->address == NULL) {
        window_map(map, window);
        window->lost_next = window->address != NULL ? ASK_COST_NS : ASK_COST_MAX_NS;
    } else {
        window_ask(window);
        window->lost_next *= window->lost_next < ASK_COST_MAX_NS ? 2 : 1;
    }
}

// ---- Life ---------------------------------------------------------------------------------------

static bool is_idle(const struct file_map *map, const struct map_window *window)
{
    return window->address != NULL && (map->idle || window->idle >= IDLE_TICKS);
}

// Unmaps some windows, and comes again until all were looked at.
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

void map_init(struct file_map *map, struct runq *runq)
{
    *map = (struct file_map){.task = {.run = on_sweep}, .runq = runq};
}

void map_set_limit(struct file_map *map, uint64_t bytes)
{
    struct rlimit space;
    uint64_t count = bytes / MAP_WINDOW_BYTES;

    // The rest of the process needs some, too.
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY &&
        count > space.rlim_cur / 4 / MAP_WINDOW_BYTES) {
        count = space.rlim_cur / 4 / MAP_WINDOW_BYTES;
    }
    count = count < MAP_WINDOWS_MAX ? count : MAP_WINDOWS_MAX;
    if (count == 0 || sysconf(_SC_PAGESIZE) != PAGE_BYTES) {
        return;
    }
    map->windows = calloc(count, sizeof(*map->windows));
    if (map->windows == NULL) {
        return;
    }
    map->count = (uint32_t)count;
    map->faults = disk_faults();
    catch_sigbus();
}

void map_destroy(struct file_map *map)
{
    for (uint32_t i = 0; i < map->count; i++) {
        window_unmap(map, &map->windows[i]);
    }
    free(map->windows);
}

void map_forget(struct file_map *map, int fd)
{
    for (uint32_t i = 0; i < map->count; i++) {
        if (map->windows[i].lost_next != 0 && map->windows[i].fd == fd) {
            window_unmap(map, &map->windows[i]);
        }
    }
}

bool map_tick(struct file_map *map)
{
    bool any_idle = false;

    map->idle = !map->used;
    map->used = false;
    map->faults = disk_faults();
    for (uint32_t i = 0; i < map->count; i++) {
        struct map_window *window = &map->windows[i];

        window->idle = window->used ? 0 : window->idle + (window->idle < IDLE_TICKS);
        window->used = false;
        if (window->address != NULL && window->lost_next > ASK_COST_NS) {
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
