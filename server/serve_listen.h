// SPDX-License-Identifier: Apache-2.0
// serve_listen.h: where `lazycow serve` listens, from its command line.
#ifndef LAZYCOW_SERVER_SERVE_LISTEN_H
#define LAZYCOW_SERVER_SERVE_LISTEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/listen.h"

// Addresses of one kind: more than anybody names on a command line, and all kinds together no more
// than LISTEN_MAX.
#define SERVE_LISTEN_MAX 16u

struct start_watch;

// Where to listen; with nothing given, TCP on localhost. The strings are borrowed.
struct serve_listen {
    const char *sockets[SERVE_LISTEN_MAX]; // paths
    size_t socket_count;
    const char *socket_mode;             // octal, for all of them; NULL: what the umask leaves
    const char *socket_group;            // for all of them, or NULL
    const char *binds[SERVE_LISTEN_MAX]; // hosts
    size_t bind_count;
    uint16_t port; // of all of these
    bool port_given;
    struct vsock_address vsocks[SERVE_LISTEN_MAX];
    size_t vsock_count;
    bool stdio; // nowhere: the client is at standard input and output
};

// Whether the command line says where to listen.
bool serve_listen_given(const struct serve_listen *listen);

// Opens every socket. listeners need not be initialised. The watch ends before a path is made.
// Returns 0, or a negative errno with a
// message; nothing is open then.
int serve_listen_open(const struct serve_listen *listen, struct start_watch *watch,
                      struct listeners *listeners, struct error *err);

#endif
