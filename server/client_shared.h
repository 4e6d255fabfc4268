// SPDX-License-Identifier: Apache-2.0
// client_shared.h: the state that all clients of a server share.
#ifndef LAZYCOW_SERVER_CLIENT_SHARED_H
#define LAZYCOW_SERVER_CLIENT_SHARED_H

#include <stdbool.h>

#include "protocol/session.h"
#include "server/access.h"
#include "server/budget.h"
#include "server/client_request.h"
#include "server/export.h"
#include "server/log.h"

// Payload memory of all connections, in bytes, and the reserve for connections that have nothing in
// flight when all of it is taken: two of the largest requests, with their overhead.
#define CLIENTS_BUDGET (512u << 20)
#define CLIENTS_RESERVE (72u << 20)

// Outlives the clients.
struct client_shared {
    // Decides which exports each peer may use.
    const struct access *access;
    // TLS that connections demand; off unless set.
    enum session_tls tls;
    struct client_request_pool *requests;
    // Ops of all clients in the engine.
    unsigned in_flight;
    struct budget budget;
    struct log *log;
    // Limits log lines about failed requests.
    struct log_limit failures;
};

// access and log are borrowed. Returns 0 or -ENOMEM.
int client_shared_init(struct client_shared *shared, const struct access *access, struct log *log);
void client_shared_destroy(struct client_shared *shared);
// Called about once a second; returns true if it wants to be called again.
bool client_shared_tick(struct client_shared *shared);
// Logs that a client has negotiated an export. identity is as for client_tls_started().
void client_shared_log_export(struct client_shared *shared, const char *client,
                              const struct export *export, const struct session *session,
                              const char *identity);

// Logs that a request's op has failed, unless there were many such lines.
void client_shared_log_failure(struct client_shared *shared, const char *client,
                               const struct export *export, const struct client_request *request);

#endif
