// SPDX-License-Identifier: Apache-2.0
// server.h: the running server: accepts connections, has their turns run, and stops in good order.
#ifndef LAZYCOW_SERVER_SERVER_H
#define LAZYCOW_SERVER_SERVER_H

#include <stdbool.h>

#include "qcow2/base/error.h"
#include "qcow2/base/runq.h"
#include "server/access.h"
#include "server/export.h"
#include "server/file_backend.h"
#include "server/keepalive.h"
#include "server/listen.h"
#include "server/log.h"
#include "server/tls.h"

struct server_options {
    struct exports *exports;
    const struct access *access; // to the exports
    struct tls_server *tls;      // NULL: connections are plain
    bool tls_required;           // none are; tls must be given
    bool exit_with_last_client;  // stop when a client has been there and none is left
    struct listeners *listeners;
    int client_fd; // a connected socket, of the only client that is served; -1: those of listeners are
    struct runq *runq;
    struct backend *backend;
    struct log *log;
    int signal_fd;                // of loop_block_signals()
    unsigned connections_max;     // past negotiation
    struct keepalive keepalive;   // of TCP connections
    uint64_t poll_max_ns;         // for loop_init()
    void (*ready)(void *context); // runs once, when connections will be answered
    void *context;
};

// Serves until a signal says to stop; then finishes what is in flight and closes listeners and
// connections. SIGHUP has the files of TLS read again. All pointers are borrowed. Returns 0 after a
// stop in good order, or a negative errno with a message if it could not begin.
int server_run(const struct server_options *options, struct error *err);

#endif
