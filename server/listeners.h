// SPDX-License-Identifier: Apache-2.0
// listeners.h: the list of the sockets that clients connect to.
#ifndef LAZYCOW_SERVER_LISTENERS_H
#define LAZYCOW_SERVER_LISTENERS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

// Most sockets of one server: a service manager hands over a few, and a host name has a few
// addresses.
#define LISTEN_MAX 64

enum listener_family { LISTENER_OTHER, LISTENER_TCP, LISTENER_UNIX, LISTENER_VSOCK };

struct listener {
    int fd; // listening, non-blocking; -1 once closed
    enum listener_family family;
    // TCP, vsock: HOST:PORT or CID:PORT as in a URI; else NULL.
    char *authority;
    // Unix: the absolute path; NULL if the socket has none.
    char *path;
    // Has a ready line of its own; false for further addresses of the same name.
    bool announce;
    // The path is removed at the end.
    bool unlink;
    // Device and inode of the path, to recognise a path that another process has taken over.
    dev_t device;
    ino_t inode;
};

struct listeners {
    struct listener list[LISTEN_MAX];
    size_t count;
};

// Appends a listener for a descriptor and takes the descriptor over. There must be room for it.
struct listener *listeners_add(struct listeners *listeners, int fd);

// Closes the sockets behind the first count, and removes the paths that this server made.
void listeners_truncate(struct listeners *listeners, size_t count);
void listeners_close(struct listeners *listeners);

#endif
