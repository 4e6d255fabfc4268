// SPDX-License-Identifier: Apache-2.0
// server.h: the running server: accepts connections, runs their turns, and stops in good order.
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
    // Decides which exports each peer may use.
    const struct access *access;
    struct tls_server *tls; // NULL: there is no TLS
    bool tls_required;      // clients must use TLS; tls must be set
    // Stop after the last client has left.
    bool exit_with_last_client;
    struct listeners *listeners;
    // Connected socket of the only client; -1: clients come to the listeners.
    int client_fd;
    struct runq *runq;
    struct backend *backend;
    struct log *log;
    // The result of loop_block_signals().
    int signal_fd;
    // Most connections past negotiation.
    unsigned connections_max;
    struct keepalive keepalive; // for TCP connections
    uint64_t poll_max_ns;       // for loop_init()
    // Runs once, when connections will be answered.
    void (*ready)(void *context);
    void *context;
};

// Serves until a signal stops it; then finishes the ops in flight and closes listeners and
// connections. SIGHUP makes it read the files of TLS again. All pointers are borrowed. Returns 0
// after a stop in good order, or a negative errno with a message if it could not begin.
int server_run(const struct server_options *options, struct error *err);

#endif
