// SPDX-License-Identifier: Apache-2.0
#include "server/listeners.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct listener *listeners_add(struct listeners *listeners, int fd)
{
    struct listener *listener = &listeners->list[listeners->count];

    assert(listeners->count < LISTEN_MAX);
    listeners->count++;
    *listener = (struct listener){.fd = fd, .announce = true};
    return listener;
}

// Removes the path if it still leads to the socket.
static void remove_path(const struct listener *listener)
{
    struct stat st;

    if (lstat(listener->path, &st) == 0 && st.st_dev == listener->device &&
        st.st_ino == listener->inode) {
        unlink(listener->path);
    }
}

void listeners_truncate(struct listeners *listeners, size_t count)
{
    while (listeners->count > count) {
        struct listener *listener = &listeners->list[--listeners->count];

        if (listener->unlink) {
            remove_path(listener);
        }
        close(listener->fd);
        free(listener->authority);
        free(listener->path);
    }
}

void listeners_close(struct listeners *listeners)
{
    listeners_truncate(listeners, 0);
}
