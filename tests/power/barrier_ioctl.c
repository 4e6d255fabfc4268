// SPDX-License-Identifier: Apache-2.0
// barrier_ioctl.c: for LD_PRELOAD. Makes barriers on files of recordfs by ioctl, so that the kernel
// lets the process write meanwhile, as a disk's file system does. Works for programs that call the
// C library's fdatasync, not for those that use io_uring.
#define _GNU_SOURCE 1 // syscall
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/power/recordfs.h"

int fdatasync(int fd)
{
    if (ioctl(fd, RECORDFS_BARRIER) == 0)
        return 0;
    return (int)syscall(SYS_fdatasync, fd);
}
