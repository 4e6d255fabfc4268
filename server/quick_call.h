// SPDX-License-Identifier: Apache-2.0
// quick_call.h: the system calls of every request, without glibc's wrappers. In a process with
// threads a wrapper makes each call a cancellation point, which costs 50 instructions; no thread of
// the server is ever cancelled. Arguments, results and errno are those of recvmsg(2), recv(2),
// sendmsg(2), preadv2(2) and pwritev2(2).
#ifndef LAZYCOW_SERVER_QUICK_CALL_H
#define LAZYCOW_SERVER_QUICK_CALL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static inline ssize_t quick_recvmsg(int fd, struct msghdr *message, int flags)
{
    return syscall(SYS_recvmsg, fd, message, flags);
}

static inline ssize_t quick_recv(int fd, void *buf, size_t length, int flags)
{
    return syscall(SYS_recvfrom, fd, buf, length, flags, NULL, NULL);
}

static inline ssize_t quick_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return syscall(SYS_sendmsg, fd, message, flags);
}

// The kernel takes the offset as two halves, and ignores the upper one where a long has 64 bits.
static inline ssize_t quick_preadv2(int fd, const struct iovec *iov, int count, off_t offset,
                                    int flags)
{
    return syscall(SYS_preadv2, fd, iov, count, offset, (uint64_t)offset >> 32, flags);
}

static inline ssize_t quick_pwritev2(int fd, const struct iovec *iov, int count, off_t offset,
                                     int flags)
{
    return syscall(SYS_pwritev2, fd, iov, count, offset, (uint64_t)offset >> 32, flags);
}

#endif
