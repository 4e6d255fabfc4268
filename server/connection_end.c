// SPDX-License-Identifier: Apache-2.0
#include "server/connection_end.h"

#include <assert.h>
#include <errno.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/connection_output.h"
#include "server/connection_tls.h"
#include "server/quick_call.h"

// Milliseconds of silence from the peer until its connection is closed behind the last reply. A
// client on the same network has seen the end by then and ends too, and a stop hardly takes longer
// for clients that do not look.
#define CONNECTION_LINGER_MS 50u
// Bytes that one call discards, and calls in one turn.
#define CONNECTION_SINK_BYTES (64u << 10)
#define CONNECTION_SINK_ROUNDS 16
void connection_free_if_done(struct connection *connection)
{
    struct connection_set *set = connection->set;

    // A connection in the list send_pending is freed by the pass over that list.
    if (connection->state == CONNECTION_CLOSED && !connection->send_pending &&
        !connection_in_step(connection) && client_idle(connection->client)) {
        client_free(connection->client);
        free(connection);
        set->alive--;
        if (set->alive == 0) {
            set->emptied(set->context);
        }
    }
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct connection *connection = handle->data;

    connection->state = CONNECTION_CLOSED;
    connection_free_if_done(connection);
}

int connection_take_peeked(struct connection *connection)
{
    char sink[CONNECTION_PEEK_MAX];

    while (connection->peeked > 0) {
        ssize_t n = quick_recv(connection->fd, sink, connection->peeked, MSG_DONTWAIT);

        if (n > 0) {
            connection->peeked -= (size_t)n;
        } else if (n == 0 || errno != EINTR) {
            return n == 0 ? ECONNRESET : errno;
        }
    }
    return 0;
}

// Logs why a client left without an export if the reason is one that an operator can remove.
static void log_obstacle(const struct connection *connection)
{
    struct connection_set *set = connection->set;
    const char *name;
    const char *obstacle = client_obstacle(connection->client, &name);
    unsigned skipped;

    if (obstacle != NULL && log_limit_pass(&set->obstacles, &skipped)) {
        bool named = name[0] != '\0';

        log_line(set->log, LOG_LEVEL_INFO, "%s: %s%s%s%s", connection->name, obstacle,
                 named ? " '" : "", name, named ? "'" : "");
    }
}

static void log_failure(struct connection *connection, const char *reason)
{
    struct connection_set *set = connection->set;
    unsigned skipped;

    if (!log_limit_pass(&set->failures, &skipped)) {
        return;
    }
    if (skipped > 0) {
        log_line(set->log, LOG_LEVEL_WARNING, "%s: %s; %u more negotiations failed before",
                 connection->name, reason, skipped);
    } else {
        log_line(set->log, LOG_LEVEL_WARNING, "%s: %s", connection->name, reason);
    }
}

void connection_give_up(struct connection *connection, const char *reason)
{
    connection->failed = true;
    connection_close(connection, reason);
}

static void log_end(struct connection *connection, const char *reason)
{
    struct connection_set *set = connection->set;
    bool served = client_negotiated(connection->client);
    // A TLS handshake began and did not end. A client that only probes the port begins none.
    bool unfinished = connection->tls != NULL && !connection_secure(connection) && !set->stopping;

    if (!served && (connection->failed || unfinished)) {
        log_failure(connection, reason);
    } else {
        log_line(set->log, served ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, "%s: %s, after %llu requests",
                 connection->name, reason,
                 (unsigned long long)client_requests_taken(connection->client));
    }
}

void connection_close(struct connection *connection, const char *reason)
{
    struct connection_set *set = connection->set;

    assert(connection->state < CONNECTION_CLOSING);
    log_obstacle(connection);
    log_end(connection, reason);
    if (connection->runnable) {
        connection->runnable = false;
        TAILQ_REMOVE(&set->runnable, connection, runnable_link);
    }
    TAILQ_REMOVE(&set->open, connection, open_link);
    set->counts[connection->standing]--;
    connection->state = CONNECTION_CLOSING;
    client_abandon(connection->client);
    connection_tls_end(connection);
    // Bytes left in the socket would make the kernel reset the connection, and a reset overtakes
    // replies.
    (void)connection_take_peeked(connection);
    uv_close((uv_handle_t *)&connection->poll, on_handle_closed);
    close(connection->fd);
}

// Closes after the last reply was sent. Unread bytes of the peer would make the kernel reset the
// connection, and a reset overtakes replies on their way.
static void close_gently(struct connection *connection)
{
    char sink[4096];

    shutdown(connection->fd, SHUT_WR);
    for (int i = 0; i < CONNECTION_SEND_ROUNDS; i++) {
        if (recv(connection->fd, sink, sizeof(sink), MSG_DONTWAIT) <= 0) {
            break;
        }
    }
    connection_close(connection, connection->set->stopping ? "server is stopping"
                                                           : client_reason(connection->client));
}

// Returns true if the peer's host has received all that was sent to it.
static bool all_arrived(const struct connection *connection)
{
    int unsent = 0;

    return connection->local || ioctl(connection->fd, SIOCOUTQ, &unsent) < 0 || unsent == 0;
}

void connection_linger(struct connection *connection)
{
    char sink[CONNECTION_SINK_BYTES];
    uint64_t now = uv_now(connection->set->uv);
    ssize_t n = 1;

    for (int i = 0; n > 0 && i < CONNECTION_SINK_ROUNDS; i++) {
        do {
            n = quick_recv(connection->fd, sink, sizeof(sink), MSG_DONTWAIT);
        } while (n < 0 && errno == EINTR);
        if (n > 0) {
            connection->heard = now;
        }
    }
    if (n == 0 || (n < 0 && errno != EAGAIN) ||
        (n < 0 && now - connection->heard >= CONNECTION_LINGER_MS && all_arrived(connection))) {
        connection_close(connection, client_reason(connection->client));
    }
}

static void on_lingering(uv_poll_t *handle, int status, int events)
{
    (void)status;
    (void)events;
    connection_linger(handle->data);
}

// Shuts down the sending side behind the last reply, while the client may still be sending
// requests.
static void linger(struct connection *connection)
{
    connection->state = CONNECTION_LINGERING;
    connection->heard = uv_now(connection->set->uv);
    shutdown(connection->fd, SHUT_WR);
    uv_poll_start(&connection->poll, UV_READABLE, on_lingering);
    connection_linger(connection);
}

void connection_end(struct connection *connection)
{
    if (connection->set->stopping && connection->standing != CONNECTION_HALF_OPEN) {
        linger(connection);
    } else {
        close_gently(connection);
    }
}
