// SPDX-License-Identifier: Apache-2.0
// socket_lock.h: a lock beside a Unix socket's path, held while a server takes the path. It keeps
// two servers that start at once from both finding the same socket stale, and the second from
// removing the first one's new socket.
//
// The lock is a file of its own, ".NAME.lazycow-lock", which only our user can open. A lock of the
// directory could be held for ever by anybody who may read the directory: in /tmp, by any user.
#ifndef LAZYCOW_SERVER_SOCKET_LOCK_H
#define LAZYCOW_SERVER_SOCKET_LOCK_H

#include "qcow2/base/error.h"

struct socket_lock {
    int fd; // -1: there is no lock
    char *path;
};

// Takes the lock of a socket at an absolute path. Waits for at most two seconds. Returns 0, or a
// negative errno with a message; -EINTR if SIGTERM or SIGINT, which must be blocked, is pending.
int socket_lock_take(struct socket_lock *lock, const char *socket_path, struct error *err);

// Unlocks, and removes the file.
void socket_lock_drop(struct socket_lock *lock);

#endif
