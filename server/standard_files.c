// SPDX-License-Identifier: Apache-2.0
#include "server/standard_files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

// The major number of /dev/null (Documentation/admin-guide/devices.txt of Linux).
#define NULL_MAJOR 1u
#define NULL_MINOR 3u

// Refuses a file that somebody has put in the place of /dev/null: it would collect the output.
static int check_null(int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    return S_ISCHR(st.st_mode) && st.st_rdev == makedev(NULL_MAJOR, NULL_MINOR) ? 0 : -ENODEV;
}

int standard_files_open(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        int result;
        int opened;

        if (fcntl(fd, F_GETFD) >= 0) {
            continue;
        }
        // All lower descriptors are open, so open() returns this one.
        opened = open("/dev/null", O_RDWR);
        if (opened < 0) {
            return -errno;
        }
        result = opened == fd ? check_null(opened) : -EBADF;
        if (result < 0) {
            close(opened);
            return result;
        }
    }
    return 0;
}
