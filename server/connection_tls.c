// SPDX-License-Identifier: Apache-2.0
#include "server/connection_tls.h"

#include <assert.h>
#include <errno.h>
#include <sys/socket.h>

#include "server/tls.h"

// Iovecs of the client's output that are looked at together: replies to 32 reads and their data.
#define TLS_IOV_MAX 64

bool connection_tls_begin(struct connection *connection)
{
    assert(connection->tls == NULL);
    connection->tls = tls_new(connection->set->tls);
    if (connection->tls == NULL) {
        connection_close(connection, "no memory for TLS");
        return false;
    }
    return true;
}

// Sends the alert, should the socket take it, and closes.
static void handshake_failed(struct connection *connection)
{
    struct connection_set *set = connection->set;
    struct iovec iov;
    unsigned skipped;

    if (tls_output(connection->tls, &iov) > 0) {
        (void)send(connection->fd, iov.iov_base, iov.iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    if (log_limit_pass(&set->tls_failures, &skipped)) {
        log_line(set->log, LOG_LEVEL_WARNING, "%s: %s", connection->name,
                 tls_reason(connection->tls));
    }
    connection_close(connection, tls_reason(connection->tls));
}

bool connection_tls_handshake(struct connection *connection)
{
    char description[64];

    switch (tls_handshake(connection->tls)) {
    case TLS_MORE:
        return true;
    case TLS_FAILED:
        handshake_failed(connection);
        return false;
    case TLS_DONE:
        break;
    }
    if (client_tls_started(connection->client, tls_identity(connection->tls)) < 0) {
        connection_close(connection, "no memory for TLS");
        return false;
    }
    connection->secure = true;
    tls_describe(connection->tls, description, sizeof(description));
    log_line(connection->set->log, LOG_LEVEL_DEBUG, "%s: %s", connection->name, description);
    return true;
}

bool connection_tls_write(struct connection *connection)
{
    struct client *client = connection->client;

    // A round takes at least one record, or finds no room.
    while (client_output_bytes(client) > 0) {
        struct iovec iov[TLS_IOV_MAX];
        int count = client_output(client, iov, TLS_IOV_MAX);
        ssize_t n;

        if (count == 0) {
            connection_close(connection, "no memory for its replies");
            return false;
        }
        n = tls_write(connection->tls, iov, count);
        if (n < 0) {
            connection_close(connection, tls_reason(connection->tls));
            return false;
        }
        if (n == 0) {
            break;
        }
        connection->set->progress = true;
        client_sent(client, (size_t)n);
    }
    return true;
}

bool connection_tls_read(struct connection *connection)
{
    struct iovec iov[2];
    int count = client_input(connection->client, iov);
    ssize_t n;

    if (count == 0) {
        return false;
    }
    n = tls_read(connection->tls, iov, count);
    if (n == -EAGAIN) {
        return false;
    }
    if (n < 0) {
        connection_close(connection, tls_reason(connection->tls));
        return false;
    }
    if (n == 0) {
        client_eof(connection->client);
    } else {
        client_received(connection->client, (size_t)n);
    }
    return true;
}

void connection_tls_end(struct connection *connection)
{
    tls_free(connection->tls);
    connection->tls = NULL;
    connection->secure = false;
}
