// SPDX-License-Identifier: Apache-2.0
// driven_barriers.c: for LD_PRELOAD. Makes barriers that the test drives, so that the choice of the
// thread for them does not depend on the speed of the disk or the load of the machine. Works for
// programs that call the C library's function, not for those that use io_uring.
//
//   BARRIER_LOG   gets a line for each barrier: the thread that made it
//   BARRIER_HELD  the end of a file's name; barriers on it last until BARRIER_GO exists
//
// A barrier does nothing, and the program itself (not its libraries) sees a clock that runs a
// thousand times slower: no barrier seems slow to it.
#define _GNU_SOURCE 1 // dladdr, gettid
#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SLOWER 1000
#define HELD_LOOK_US 1000

int clock_gettime(clockid_t clock, struct timespec *now)
{
    Dl_info caller;
    Dl_info program;
    int result = (int)syscall(SYS_clock_gettime, clock, now);

    if (result == 0 && clock == CLOCK_MONOTONIC && dladdr(__builtin_return_address(0), &caller) &&
        dladdr((void *)getauxval(AT_ENTRY), &program) && caller.dli_fbase == program.dli_fbase) {
        long long ns = (now->tv_sec * 1000000000ll + now->tv_nsec) / SLOWER;

        now->tv_sec = ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
    }
    return result;
}

static bool is_held(int fd)
{
    const char *held = getenv("BARRIER_HELD");
    char link[64];
    char name[4096];
    size_t length = held != NULL ? strlen(held) : 0;
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, name, sizeof(name));
    return length > 0 && n >= (ssize_t)length && memcmp(name + n - length, held, length) == 0;
}

int fdatasync(int fd)
{
    char line[32];
    int length = snprintf(line, sizeof(line), "%d\n", (int)gettid());
    int log = open(getenv("BARRIER_LOG"), O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0600);

    if (log < 0 || write(log, line, (size_t)length) != length) {
        abort();
    }
    close(log);
    while (is_held(fd) && access(getenv("BARRIER_GO"), F_OK) != 0) {
        usleep(HELD_LOOK_US);
    }
    return 0;
}
