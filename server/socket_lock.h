// SPDX-License-Identifier: Apache-2.0
// socket_lock.h: a lock beside a Unix socket's path, held while a server takes the path. Two servers
// that start at once must not both find the same socket stale, and the second remove the first
// one's new socket.
//
// It is a file of its own, ".NAME.lazycow-lock", which only we can open: a lock of the directory
// could be held for ever by anybody who may read that, in /tmp any user.
#ifndef LAZYCOW_SERVER_SOCKET_LOCK_H
#define LAZYCOW_SERVER_SOCKET_LOCK_H

#include "qcow2/base/error.h"

struct socket_lock {
    int fd; // -1: none; the file system has no locks
    char *path;
};

// Takes the lock of a socket at an absolute path. Waits for two seconds at most, or until SIGTERM or
// SIGINT, which are blocked, are pending: -EINTR. Returns 0, or a negative errno with a message.
int socket_lock_take(struct socket_lock *lock, const char *socket_path, struct error *err);

// Removes the file.
void socket_lock_drop(struct socket_lock *lock);

#endif
