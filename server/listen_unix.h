// SPDX-License-Identifier: Apache-2.0
// listen_unix.h: listens on Unix sockets, whose names are files.
#ifndef LAZYCOW_SERVER_LISTEN_UNIX_H
#define LAZYCOW_SERVER_LISTEN_UNIX_H

#include <stdint.h>
#include <sys/types.h>

#include "qcow2/base/error.h"
#include "server/listeners.h"

// Makes a descriptor non-blocking and close-on-exec. Returns 0 or a negative errno.
int listen_prepare(int fd);

// Sets the listener's path from its socket's address; leaves it NULL for a socket without a path.
// Returns 0 or a negative errno with a message.
int listen_unix_name(struct listener *listener, struct error *err);

// The mode and group that decide which users may connect; each may be LISTEN_UNIX_AS_IS.
struct listen_unix_access {
    mode_t mode;
    gid_t group;
};
#define LISTEN_UNIX_AS_IS UINT32_MAX

// Appends a Unix socket. Replaces a stale one under the same path, but not one that is alive.
// Returns 0, or a negative errno with a message; then listeners are as before the call.
int listen_unix(struct listeners *listeners, const char *path,
                const struct listen_unix_access *access, struct error *err);

#endif
