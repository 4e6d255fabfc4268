// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE 1 // F_OFD_SETLK
#include "server/file_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

// Offsets at which QEMU puts the two rows of lock bytes, and the numbers of its permissions in each
// row (observed with QEMU 7.2 in /proc/locks; unchanged since QEMU 2.10).
#define USED_BASE 100     // this permission is used
#define UNSHARED_BASE 200 // no one else may use this permission

#define PERMISSION_CONSISTENT_READ 0
#define PERMISSION_WRITE 1
#define PERMISSION_WRITE_UNCHANGED 2
#define PERMISSION_RESIZE 3
#define PERMISSION_COUNT 4

_Static_assert(FILE_LOCK_BYTE_FIRST == USED_BASE, "the first lock byte");
_Static_assert(FILE_LOCK_BYTE_WRITES == USED_BASE + PERMISSION_WRITE, "the lock byte of writers");
_Static_assert(FILE_LOCK_BYTE_LAST == UNSHARED_BASE + PERMISSION_COUNT - 1, "the last lock byte");

#define BIT(permission) (1u << (permission))

struct permissions {
    unsigned used;
    unsigned unshared;
};

// The permissions that qemu-nbd and qemu-io take on an image opened for writing and on one opened
// read-only; a qcow2 or raw backing file counts as read-only. WRITE_UNCHANGED is for block jobs.
static const struct permissions roles[] = {
    [FILE_LOCK_READER] = {BIT(PERMISSION_CONSISTENT_READ),
                          BIT(PERMISSION_WRITE) | BIT(PERMISSION_RESIZE)},
    [FILE_LOCK_WRITER] = {BIT(PERMISSION_CONSISTENT_READ) | BIT(PERMISSION_WRITE) |
                              BIT(PERMISSION_RESIZE),
                          BIT(PERMISSION_WRITE) | BIT(PERMISSION_RESIZE)},
};

// Returns 0 or a negative errno.
static int lock_byte(int fd, int command, struct flock *lock, short type, off_t byte)
{
    *lock = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    while (fcntl(fd, command, lock) != 0) {
        if (errno != EINTR)
            return -errno;
    }
    return 0;
}

// Sets read locks on the bytes base + n of all permissions n in mask.
static int set_row(int fd, off_t base, unsigned mask)
{
    struct flock lock;

    for (int n = 0; n < PERMISSION_COUNT; n++) {
        if (mask & BIT(n)) {
            int result = lock_byte(fd, F_OFD_SETLK, &lock, F_RDLCK, base + n);

            if (result < 0)
                return result;
        }
    }
    return 0;
}

// Returns -EAGAIN if another open file description holds a byte base + n of a permission n in mask.
static int test_row(int fd, off_t base, unsigned mask)
{
    struct flock lock;

    for (int n = 0; n < PERMISSION_COUNT; n++) {
        if (mask & BIT(n)) {
            // Asks for a write lock, which conflicts with a read lock of anyone else.
            int result = lock_byte(fd, F_OFD_GETLK, &lock, F_WRLCK, base + n);

            if (result < 0)
                return result;
            if (lock.l_type != F_UNLCK)
                return -EAGAIN;
        }
    }
    return 0;
}

static void unlock_all(int fd)
{
    struct flock lock;

    for (int n = 0; n < PERMISSION_COUNT; n++) {
        lock_byte(fd, F_OFD_SETLK, &lock, F_UNLCK, USED_BASE + n);
        lock_byte(fd, F_OFD_SETLK, &lock, F_UNLCK, UNSHARED_BASE + n);
    }
}

int file_lock(int fd, enum file_lock_role role, const char *name, struct error *err)
{
    const struct permissions *want = &roles[role];
    int result = set_row(fd, USED_BASE, want->used);

    if (result == 0)
        result = set_row(fd, UNSHARED_BASE, want->unshared);
    if (result == 0)
        result = test_row(fd, UNSHARED_BASE, want->used);
    if (result == 0)
        result = test_row(fd, USED_BASE, want->unshared);
    if (result == 0)
        return 0;

    unlock_all(fd);
    // POSIX allows EACCES for a refused lock as well: someone holds a write lock on one of the
    // bytes.
    if (result == -EAGAIN || result == -EACCES)
        return error_set(err, EAGAIN,
                         "%s: another process %s this image; stop it first (a virtual machine, "
                         "qemu-nbd, qemu-img or lazycow)",
                         name, role == FILE_LOCK_WRITER ? "uses" : "writes to");
    return error_set(err, -result, "%s: cannot lock the image: %s", name, strerror(-result));
}
