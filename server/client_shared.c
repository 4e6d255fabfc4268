// SPDX-License-Identifier: Apache-2.0
// client_shared.c: what the clients of a server have in common.
#include <assert.h>
#include <errno.h>

#include "server/client.h"

int client_shared_init(struct client_shared *shared, const struct access *access, struct log *log)
{
    *shared = (struct client_shared){
        .access = access,
        .requests = request_pool_new(),
        .budget = {.limit = CLIENTS_BUDGET, .reserve = CLIENTS_RESERVE},
        .log = log,
    };
    return shared->requests != NULL ? 0 : -ENOMEM;
}

void client_shared_destroy(struct client_shared *shared)
{
    assert(shared->budget.used == 0);
    request_pool_free(shared->requests);
}

bool client_shared_tick(struct client_shared *shared)
{
    return request_pool_tick(shared->requests);
}
