// SPDX-License-Identifier: Apache-2.0
// peer.h: names the other end of a socket, for the log.
#ifndef LAZYCOW_SERVER_PEER_H
#define LAZYCOW_SERVER_PEER_H

#include <stddef.h>

// Writes "127.0.0.1:1234", or for a Unix socket the process and user behind it.
void peer_name(int fd, char *name, size_t size);

#endif
