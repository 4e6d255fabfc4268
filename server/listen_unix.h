// SPDX-License-Identifier: Apache-2.0
// listen_unix.h: what is particular about listening on a Unix socket: its name in the file system.
#ifndef LAZYCOW_SERVER_LISTEN_UNIX_H
#define LAZYCOW_SERVER_LISTEN_UNIX_H

#include "qcow2/base/error.h"
#include "server/listen.h"

// Makes a descriptor non-blocking and closed on exec. Returns 0 or a negative errno.
int listen_prepare(int fd);

// Sets the listener's path from its socket's address; leaves it NULL for a socket without one.
// Returns 0 or a negative errno with a message.
int listen_unix_name(struct listener *listener, struct error *err);

// Removes the listener's path if it still leads to its socket.
void listen_unix_remove(const struct listener *listener);

#endif
