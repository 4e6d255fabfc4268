// SPDX-License-Identifier: Apache-2.0
// client_shared.h: what the clients of a server have in common.
#ifndef LAZYCOW_SERVER_CLIENT_SHARED_H
#define LAZYCOW_SERVER_CLIENT_SHARED_H

#include <stdbool.h>

#include "protocol/session.h"
#include "server/access.h"
#include "server/budget.h"
#include "server/client_request.h"
#include "server/export.h"
#include "server/log.h"

// Payload memory of all connections, in bytes, and what is kept for connections that have nothing
// in flight when the rest is taken: again two of the largest requests, with what comes with them.
#define CLIENTS_BUDGET (512u << 20)
#define CLIENTS_RESERVE (72u << 20)

// Outlives the clients.
struct client_shared {
    const struct access *access; // to the exports
    enum session_tls tls;        // what connections demand; off unless set
    struct client_request_pool *requests;
    unsigned in_flight; // of all clients, in the engine
    struct budget budget;
    struct log *log;
    struct log_limit failures; // lines about failed requests
};

// access and log are borrowed. Returns 0 or -ENOMEM.
int client_shared_init(struct client_shared *shared, const struct access *access, struct log *log);
void client_shared_destroy(struct client_shared *shared);
// To be called about once a second; returns whether it wants to be called again.
bool client_shared_tick(struct client_shared *shared);
// Writes a line to the log about an export that a client has negotiated. identity: as client_tls_started().
void client_shared_log_export(struct client_shared *shared, const char *client,
                              const struct export *export, const struct session *session,
                              const char *identity);

// Writes a line to the log about a request whose op has failed, unless there were many.
void client_shared_log_failure(struct client_shared *shared, const char *client,
                               const struct export *export, const struct client_request *request);

#endif
