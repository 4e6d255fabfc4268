// SPDX-License-Identifier: Apache-2.0
#include "server/client_shared.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

int client_shared_init(struct client_shared *shared, const struct access *access, struct log *log)
{
    *shared = (struct client_shared){
        .access = access,
        .requests = client_request_pool_new(),
        .budget = {.limit = CLIENTS_BUDGET, .reserve = CLIENTS_RESERVE},
        .log = log,
    };
    return shared->requests != NULL ? 0 : -ENOMEM;
}

void client_shared_destroy(struct client_shared *shared)
{
    assert(shared->budget.used == 0);
    client_request_pool_free(shared->requests);
}

bool client_shared_tick(struct client_shared *shared)
{
    return client_request_pool_tick(shared->requests);
}

void client_shared_log_failure(struct client_shared *shared, const char *client,
                               const struct export *export, const struct client_request *request)
{
    const struct session_request *wire = &request->request;
    unsigned skipped;

    // -ENOTSUP means that the request would not be fast: an answer to the client, not a failure.
    if (request->op.result == -ENOTSUP || !log_limit_pass(&shared->failures, &skipped)) {
        return;
    }
    if (skipped > 0) {
        log_line(shared->log, LOG_LEVEL_WARNING, "%u more requests failed", skipped);
    }
    log_line(shared->log, LOG_LEVEL_WARNING,
             "%s: export '%s': %s of %llu bytes at offset %llu failed: %s", client, export->name,
             client_request_name(request), (unsigned long long)wire->length,
             (unsigned long long)wire->offset, strerror(-request->op.result));
}

void client_shared_log_export(struct client_shared *shared, const char *client,
                              const struct export *export, const struct session *session,
                              const char *identity)
{
    unsigned contexts = session_contexts(session);

    log_line(shared->log, LOG_LEVEL_INFO, "%s: export '%s'%s%s%s%s%s%s", client, export->name,
             session_extended(session)     ? ", extended headers"
             : session_structured(session) ? ", structured replies"
                                           : "",
             contexts & SESSION_CONTEXT_BASE_ALLOCATION ? ", base:allocation" : "",
             contexts & SESSION_CONTEXT_ALLOCATION_DEPTH ? ", qemu:allocation-depth" : "",
             session_tls(session) ? ", TLS" : "", identity != NULL ? " as " : "",
             identity != NULL ? identity : "");
}
