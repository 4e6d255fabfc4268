// SPDX-License-Identifier: Apache-2.0
#include "server/connection.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "server/connection_end.h"
#include "server/connection_output.h"
#include "server/connection_tls.h"
#include "server/loop.h"
#include "server/peer.h"
#include "server/quick_call.h"

// Send buffer of a Unix socket, in bytes: the replies to 32 reads of 4 KiB, or to two of 256 KiB,
// with the kernel's overhead. The kernel makes it smaller if net.core.wmem_max is. TCP sizes its
// buffers by itself.
#define CONNECTION_UNIX_SEND_BUFFER (1 << 20)

const char *const connection_standing_names[] = {
    [CONNECTION_HALF_OPEN] = "negotiating",
    [CONNECTION_SERVED] = "served",
    [CONNECTION_LEAVING] = "leaving",
};

const char *const connection_state_names[] = {
    [CONNECTION_OPEN] = "open",
    [CONNECTION_LINGERING] = "lingering",
    [CONNECTION_CLOSING] = "closing",
    [CONNECTION_CLOSED] = "closed",
};

const char *const connection_tls_names[] = {
    [CONNECTION_TLS_NONE] = "no TLS",
    [CONNECTION_TLS_HANDSHAKE] = "in a TLS handshake",
    [CONNECTION_TLS_QUEUED] = "TLS handshake waits for a thread",
    [CONNECTION_TLS_RUNNING] = "TLS handshake runs on a thread",
    [CONNECTION_TLS_SECURE] = "TLS",
};

static void on_poll(uv_poll_t *handle, int status, int events);

// ---- Open and close -----------------------------------------------------------------------------

static void mark_send_pending(struct connection *connection)
{
    if (!connection->send_pending) {
        connection->send_pending = true;
        TAILQ_INSERT_TAIL(&connection->set->send_pending, connection, send_pending_link);
    }
}

static void set_runnable(struct connection *connection, bool runnable)
{
    if (connection->runnable == runnable) {
        return;
    }
    connection->runnable = runnable;
    if (runnable) {
        TAILQ_INSERT_TAIL(&connection->set->runnable, connection, runnable_link);
    } else {
        TAILQ_REMOVE(&connection->set->runnable, connection, runnable_link);
    }
}

static void on_client_changed(void *context)
{
    struct connection *connection = context;

    connection->idle_since = uv_now(connection->set->uv);
    mark_send_pending(connection);
}

// Sets the options of a new socket. Returns true if it is a Unix socket.
static bool tune_socket(const struct connection_set *set, int fd)
{
    const int on = 1;
    const int bytes = CONNECTION_UNIX_SEND_BUFFER;
    int domain = 0;
    socklen_t length = sizeof(domain);

    (void)getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    if (domain == AF_UNIX) {
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    } else if (domain == AF_INET || domain == AF_INET6) {
        // "Protocol phases" asks for it: a reply does not wait to share a packet with the next one.
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        keepalive_set(fd, &set->keepalive);
    }
    return domain == AF_UNIX;
}

void connection_open(struct connection_set *set, int fd)
{
    struct connection *connection = calloc(1, sizeof(*connection));
    char peer[CONNECTION_NAME_MAX / 2 + 16];

    if (connection != NULL) {
        peer_name(fd, peer, sizeof(peer));
        snprintf(connection->name, sizeof(connection->name), "connection %llu (%s)",
                 (unsigned long long)++set->next_number, peer);
        connection->client =
            client_new(set->shared, connection->name, on_client_changed, connection);
    }
    if (connection == NULL || connection->client == NULL ||
        uv_poll_init(set->uv, &connection->poll, fd) < 0) {
        log_line(set->log, LOG_LEVEL_WARNING, "no memory for a connection");
        if (connection != NULL && connection->client != NULL) {
            client_free(connection->client);
        }
        free(connection);
        close(fd);
        return;
    }
    connection->local = tune_socket(set, fd);
    connection->set = set;
    connection->fd = fd;
    connection->poll.data = connection;
    connection->since = uv_now(set->uv);
    connection->progress = connection->since;
    TAILQ_INSERT_TAIL(&set->open, connection, open_link);
    set->counts[CONNECTION_HALF_OPEN]++;
    set->alive++;
    log_line(set->log, LOG_LEVEL_DEBUG, "%s: accepted", connection->name);
    connection_run(connection);
}

// ---- Between socket and client ------------------------------------------------------------------

// Fills iov with the buffers to receive into: the client's own, or TLS's. Returns the number of
// iovecs; 0: nothing is to be received now.
static int input_room(struct connection *connection, struct iovec iov[2])
{
    int count = client_input(connection->client, iov);

    if (connection->tls == NULL || (connection_secure(connection) && count == 0)) {
        return count;
    }
    if (connection_in_step(connection)) {
        return 0;
    }
    return tls_input(connection->tls, &iov[0]) > 0 ? 1 : 0;
}

// Hands received bytes on to the client or to TLS; 0 bytes: the peer has ended its side.
static void input_came(struct connection *connection, size_t bytes)
{
    if (connection->tls == NULL) {
        if (bytes == 0) {
            client_eof(connection->client);
        } else {
            client_received(connection->client, bytes);
        }
    } else if (bytes == 0) {
        tls_eof(connection->tls);
    } else {
        tls_received(connection->tls, bytes);
    }
}

// ---- Events -------------------------------------------------------------------------------------

// Polls for the events that are wanted. Unless `strictly` is set, events that are no longer wanted
// stay polled until one of them comes: changing the set costs two system calls, and an event that
// is not wanted now is often wanted again soon.
static void poll_update(struct connection *connection, bool strictly)
{
    struct iovec iov[2];
    int wanted = 0;

    if (connection->state != CONNECTION_OPEN) {
        return;
    }
    if (input_room(connection, iov) > 0) {
        wanted |= UV_READABLE;
    }
    if (connection->blocked) {
        wanted |= UV_WRITABLE;
    }
    if (strictly ? wanted != connection->polled : (wanted & ~connection->polled) != 0) {
        // Keeps the events that are still polled but no longer wanted.
        connection->polled = strictly ? wanted : wanted | connection->polled;
        if (connection->polled == 0) {
            uv_poll_stop(&connection->poll);
        } else {
            uv_poll_start(&connection->poll, connection->polled, on_poll);
        }
    }
}

void connection_become(struct connection *connection, enum connection_standing standing)
{
    assert(connection->state == CONNECTION_OPEN && standing > connection->standing);
    connection->set->counts[connection->standing]--;
    connection->standing = standing;
    connection->set->counts[standing]++;
    if (standing == CONNECTION_LEAVING) {
        client_leave(connection->client);
    }
}

// Lets the client act on the bytes that it has. Returns false when that ended the connection.
static bool run_client(struct connection *connection)
{
    struct connection_set *set = connection->set;
    enum client_state state = client_run(connection->client);

    if (connection->standing == CONNECTION_HALF_OPEN && client_negotiated(connection->client)) {
        if (!set->place(set)) {
            connection_close(connection, "refused, too many connections (--max-connections)");
            return false;
        }
        set->served = true;
        connection_become(connection, CONNECTION_SERVED);
    }
    if (connection->standing == CONNECTION_SERVED && state == CLIENT_ENDING) {
        connection_become(connection, CONNECTION_LEAVING);
    }
    if (state == CLIENT_BROKEN) {
        connection_close(connection, client_reason(connection->client));
        return false;
    }
    if (state == CLIENT_YIELDED) {
        set->progress = true;
    }
    set_runnable(connection, state == CLIENT_YIELDED || state == CLIENT_STALLED);
    return true;
}

void connection_run(struct connection *connection)
{
    do {
        if (!run_client(connection)) {
            return;
        }
        // Plaintext that waits in TLS has left the socket earlier, so no event of the socket
        // announces it.
    } while (connection_secure(connection) && connection_tls_read(connection));
    if (connection->state != CONNECTION_OPEN) {
        return;
    }
    if (connection_output_pending(connection) || client_ending(connection->client)) {
        mark_send_pending(connection);
    }
    poll_update(connection, false);
}

// Taking bytes from a Unix socket makes room, and so wakes a sender that already waits in recv():
// it finds nothing, sleeps again, and the reply wakes it a second time, for 4 to 10 us each. So the
// request of a client that sends one at a time is only peeked at, and taken when its reply has
// left. A client with several requests in flight does not sleep for long, and the second call would
// cost more than it saves.
static ssize_t receive(struct connection *connection, struct iovec iov[2], int count)
{
    bool peek = connection->local && connection->one_came && connection->tls == NULL &&
                count == 1 && client_idle(connection->client);
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)count};
    ssize_t n;

    if (peek && iov[0].iov_len > CONNECTION_PEEK_MAX) {
        iov[0].iov_len = CONNECTION_PEEK_MAX;
    }
    do {
        n = quick_recvmsg(connection->fd, &message, MSG_DONTWAIT | (peek ? MSG_PEEK : 0));
    } while (n < 0 && errno == EINTR);
    if (peek && n > 0) {
        connection->peeked = (size_t)n;
        mark_send_pending(connection);
    }
    return n;
}

void connection_receive(struct connection *connection)
{
    struct iovec iov[2];
    int count = input_room(connection, iov);
    uint64_t requests = client_requests_taken(connection->client);
    ssize_t n;
    int error;

    if (count == 0) {
        poll_update(connection, true);
        return;
    }
    error = connection_take_peeked(connection);
    if (error != 0) {
        connection_close(connection, strerror(error));
        return;
    }
    n = receive(connection, iov, count);
    if (n < 0) {
        if (errno != EAGAIN) {
            connection_close(connection, strerror(errno));
        }
        return;
    }
    connection->set->turn |= LOOP_RECEIVED;
    if (connection->set->shared->in_flight > 0) {
        connection->set->turn |= LOOP_OVERLAPPED;
    }
    input_came(connection, (size_t)n);
    if (connection->tls != NULL && !connection_secure(connection)) {
        connection_tls_handshake(connection);
    } else {
        connection_run(connection);
    }
    connection->one_came = client_requests_taken(connection->client) - requests == 1 &&
                           n < (ssize_t)CONNECTION_PEEK_MAX;
    if (n == 0) {
        poll_update(connection, true);
    }
}

void connection_stop(struct connection *connection)
{
    client_stop(connection->client);
    connection_run(connection);
    // A client that negotiates gets a reply to the options that it has already sent.
    if (connection->state == CONNECTION_OPEN && !client_ending(connection->client)) {
        connection_receive(connection);
    }
    if (connection->state == CONNECTION_OPEN) {
        mark_send_pending(connection);
    }
}

// The socket has failed, and libuv polls it no longer.
static void on_error(struct connection *connection)
{
    int error = 0;
    socklen_t length = sizeof(error);

    connection->polled = 0;
    if (connection->tls != NULL && !connection_secure(connection)) {
        // The client's last bytes tell why it gives up, so they are handled before the error. They
        // have to wait while a step of the handshake runs.
        if (!connection_in_step(connection)) {
            connection_receive(connection);
        }
        if (connection->state != CONNECTION_OPEN || connection_in_step(connection)) {
            return;
        }
    }
    (void)getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    connection_close(connection, error != 0 ? strerror(error) : "connection lost");
}

static void on_poll(uv_poll_t *handle, int status, int events)
{
    struct connection *connection = handle->data;

    if (status < 0) {
        on_error(connection);
        return;
    }
    if (events & UV_WRITABLE) {
        connection->blocked = false;
        if (connection_output_pending(connection)) {
            mark_send_pending(connection);
        } else {
            poll_update(connection, true);
        }
    }
    if (events & UV_READABLE) {
        connection_receive(connection);
    }
}

// ---- Output -------------------------------------------------------------------------------------

void connection_send_pending(struct connection *connection)
{
    int error;

    TAILQ_REMOVE(&connection->set->send_pending, connection, send_pending_link);
    connection->send_pending = false;
    if (connection->state != CONNECTION_OPEN) {
        connection_free_if_done(connection);
        return;
    }
    if (!connection_send(connection)) {
        return;
    }
    connection->set->turn |= connection->peeked > 0 ? LOOP_PEEKED : 0;
    error = connection_take_peeked(connection);
    if (error != 0) {
        connection_close(connection, strerror(error));
        return;
    }
    if (client_drained(connection->client) &&
        (client_ending(connection->client) || connection->set->stopping)) {
        if (connection_secure(connection)) {
            tls_bye(connection->tls);
            if (!connection_send(connection)) {
                return;
            }
        }
        if (!connection_output_pending(connection)) {
            connection_end(connection);
            return;
        }
    } else if (client_wants_tls(connection->client) && connection->tls == NULL &&
               !connection_output_pending(connection) && !connection_tls_begin(connection)) {
        return;
    }
    if (!connection->blocked && connection_output_pending(connection)) {
        mark_send_pending(connection);
    }
    poll_update(connection, false);
}
