// SPDX-License-Identifier: Apache-2.0
#include "server/limits.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

// Descriptors of the loop. libuv 1.44 opens seven (epoll, an eventfd, two pipes for signals), later
// versions a ring or two; libuv aborts when some of them cannot be opened.
#define LOOP_DESCRIPTORS 12u
// Further descriptors while serving: a connection, a file that SIGHUP reads again, a socket of
// sd_notify.
#define SERVING_DESCRIPTORS 4u
#define DESCRIPTORS_MAX (LOOP_DESCRIPTORS + SERVING_DESCRIPTORS + LIMITS_FILES_MAX)

// Least stack of the main thread, in bytes: setting up a TLS session takes 100 KiB, and sanitizers
// enlarge frames. The default of Linux is 8 MiB.
#define STACK_BYTES_MIN (256u << 10)

// Bytes of stack that are touched at the start, page by page: as many as the deepest call takes
// later. By then a limit of the address space (ulimit -v) may leave the stack no room to grow,
// which would be a SIGSEGV.
#define STACK_BYTES_USED (192u << 10)
#define PAGE_BYTES 4096u

__attribute__((noinline)) static void grow_stack(void)
{
    volatile char room[STACK_BYTES_USED];

    for (size_t i = sizeof(room); i >= PAGE_BYTES; i -= PAGE_BYTES) {
        room[i - 1] = 0;
    }
}

// Returns true if the address space has room for STACK_BYTES_USED more.
static bool have_addresses(void)
{
    void *room =
        mmap(NULL, STACK_BYTES_USED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return room != MAP_FAILED && munmap(room, STACK_BYTES_USED) == 0;
}

// Raises a soft limit to its hard limit. Returns the soft limit afterwards.
static rlim_t raise_limit(int resource)
{
    struct rlimit limit;

    if (getrlimit(resource, &limit) < 0) {
        return RLIM_INFINITY;
    }
    if (limit.rlim_cur == limit.rlim_max) {
        return limit.rlim_cur;
    }
    const struct rlimit raised = {.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
    return setrlimit(resource, &raised) == 0 ? limit.rlim_max : limit.rlim_cur;
}

int limits_raise(struct error *err)
{
    struct rlimit limit;
    rlim_t stack;

    // Each connection takes a descriptor, each image of a backing chain one or more.
    (void)raise_limit(RLIMIT_NOFILE);
    // The kernel lets the stack grow up to the current soft limit.
    if (getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur < STACK_BYTES_MIN) {
        stack = raise_limit(RLIMIT_STACK);
        if (stack < STACK_BYTES_MIN) {
            return error_set(err, ENOMEM,
                             "the limit of the stack (%llu KiB) is below %u KiB; raise it (ulimit "
                             "-s, LimitSTACK= of a unit)",
                             (unsigned long long)stack >> 10, STACK_BYTES_MIN >> 10);
        }
    }
    if (!have_addresses()) {
        return error_set(err, ENOMEM,
                         "the limit of memory leaves no room for a stack; raise it (ulimit -v, "
                         "LimitAS= of a unit)");
    }
    grow_stack();
    return 0;
}

// Returns true if count descriptors can be opened; otherwise errno has the reason. Closes all of
// them.
static bool have_room(unsigned count)
{
    int copies[DESCRIPTORS_MAX];
    unsigned opened = 0;
    int code;

    assert(count <= DESCRIPTORS_MAX);
    while (opened < count) {
        copies[opened] = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
        if (copies[opened] < 0) {
            break;
        }
        opened++;
    }
    code = errno;
    for (unsigned i = 0; i < opened; i++) {
        close(copies[i]);
    }
    errno = code;
    return opened == count;
}

int limits_check_files(unsigned more, struct error *err)
{
    unsigned count = LOOP_DESCRIPTORS + SERVING_DESCRIPTORS + more;
    struct rlimit limit = {0};

    if (have_room(count)) {
        return 0;
    }
    if (errno != EMFILE) {
        return error_set(err, errno, "cannot open %u more files, which serving takes: %s", count,
                         strerror(errno));
    }
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    return error_set(err, EMFILE,
                     "the limit of open files (%llu) leaves no room for %u more, which serving "
                     "takes; raise it (ulimit -n, LimitNOFILE= of a unit)",
                     (unsigned long long)limit.rlim_cur, count);
}
