// SPDX-License-Identifier: Apache-2.0
// listeners.h: the list of the sockets that clients connect to.
#ifndef LAZYCOW_SERVER_LISTENERS_H
#define LAZYCOW_SERVER_LISTENERS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

// Sockets of one server: a service manager hands over a few, and a host name has a few addresses.
#define LISTEN_MAX 64

enum listener_family { LISTENER_OTHER, LISTENER_TCP, LISTENER_UNIX, LISTENER_VSOCK };

struct listener {
    int fd; // listening, non-blocking; -1 once closed
    enum listener_family family;
    char *authority; // TCP, vsock: HOST:PORT or CID:PORT as it stands in a URI; else NULL
    char *path;      // Unix: absolute; NULL where it has none
    bool announce;   // stands for itself in the ready lines, not another address of the same name
    bool unlink;     // the path is ours to remove
    dev_t device;    // of the path, to know whether it is still ours
    ino_t inode;
};

struct listeners {
    struct listener list[LISTEN_MAX];
    size_t count;
};

// Appends a listener for a descriptor, which it owns. There must be room for it.
struct listener *listeners_add(struct listeners *listeners, int fd);

// Closes the sockets behind the first count, removes the paths of our own.
void listeners_truncate(struct listeners *listeners, size_t count);
void listeners_close(struct listeners *listeners);

#endif
