// SPDX-License-Identifier: Apache-2.0
// listen_unix.h: what is particular about listening on a Unix socket: its name in the file system.
#ifndef LAZYCOW_SERVER_LISTEN_UNIX_H
#define LAZYCOW_SERVER_LISTEN_UNIX_H

#include <stdint.h>
#include <sys/types.h>

#include "qcow2/base/error.h"
#include "server/listeners.h"

// Makes a descriptor non-blocking and closed on exec. Returns 0 or a negative errno.
int listen_prepare(int fd);

// Sets the listener's path from its socket's address; leaves it NULL for a socket without one.
// Returns 0 or a negative errno with a message.
int listen_unix_name(struct listener *listener, struct error *err);

// Who may connect to a Unix socket; each field may be LISTEN_UNIX_AS_IS.
struct listen_unix_access {
    mode_t mode;
    gid_t group;
};
#define LISTEN_UNIX_AS_IS UINT32_MAX

// Appends a Unix socket. One that nobody listens on is replaced, one that is alive is not. Returns 0, or
// a negative errno with a message; listeners are what they were before then.
int listen_unix(struct listeners *listeners, const char *path,
                const struct listen_unix_access *access, struct error *err);

#endif
