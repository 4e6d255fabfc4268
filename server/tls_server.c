// SPDX-License-Identifier: Apache-2.0
// tls_server.c: the TLS state that all connections share (tls.h).
#include <errno.h>
#include <stdlib.h>

#include "server/tls.h"
#include "server/tls_credentials.h"

int tls_server_new(struct tls_server **out, const struct tls_options *options, time_t now,
                   struct error *err)
{
    struct tls_server *server = calloc(1, sizeof(*server));
    int result;

    if (server == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    server->options = *options;
    result = tls_credentials_load(&server->credentials, options, now, err);
    if (result < 0) {
        free(server);
        return result;
    }
    *out = server;
    return 0;
}

void tls_server_free(struct tls_server *server)
{
    if (server != NULL) {
        tls_credentials_drop(server->credentials);
        free(server);
    }
}

int tls_server_reload(struct tls_server *server, time_t now, struct error *err)
{
    struct tls_credentials *fresh;
    int result = tls_credentials_load(&fresh, &server->options, now, err);

    if (result < 0) {
        return result;
    }
    tls_credentials_drop(server->credentials);
    server->credentials = fresh;
    return 0;
}

const char *tls_server_warning(const struct tls_server *server, size_t index)
{
    const struct tls_check *check = &server->credentials->check;

    return index < check->warning_count ? check->warnings[index] : NULL;
}

time_t tls_server_expires(const struct tls_server *server)
{
    return server->credentials->check.expires;
}
