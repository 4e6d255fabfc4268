// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // accept4
#include "server/dump.h"
#include "server/server.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <uv.h>

#include "server/client.h"
#include "server/connection_set.h"
#include "server/loop.h"
#include "server/notify.h"
#include "server/tls_log.h"
#include "server/loop_workers.h"

// Connections accepted from one socket in one turn, so that a flood of them does not delay the
// clients that are served.
#define SERVER_ACCEPT_ROUND 16
// Milliseconds between two checks for a client that has been silent for long enough to give way to
// a connection that waits to be accepted.
#define SERVER_ROOM_MS 50u

// The state of accepting connections.
//
//   ACCEPTS ──too many negotiate──> FULL ──there is room──> ACCEPTS
//      └──no descriptor or memory──> PAUSED ──the next tick──> ACCEPTS
//
// Each state becomes STOPPING, once.
enum server_state {
    SERVER_ACCEPTS,
    // Further connections stay in the kernel until others have finished their negotiation.
    SERVER_FULL,
    // No socket is polled: it would report itself readable all the time.
    SERVER_PAUSED,
    SERVER_STOPPING,
};

struct server {
    const struct server_options *options;
    struct loop loop;
    struct client_shared shared;
    struct connection_set connections;
    uv_poll_t accept_polls[LISTEN_MAX];
    // Makes the loop turn while connections wait to be accepted, and while the server stops.
    uv_timer_t turn_timer;
    struct log_limit accept_failures;
    enum server_state state;
};

static void on_acceptable(uv_poll_t *handle, int status, int events);

static void accept_start(struct server *server)
{
    for (size_t i = 0; i < server->options->listeners->count; i++) {
        uv_poll_start(&server->accept_polls[i], UV_READABLE, on_acceptable);
    }
    server->state = SERVER_ACCEPTS;
    uv_timer_stop(&server->turn_timer);
}

static void accept_stop(struct server *server)
{
    for (size_t i = 0; i < server->options->listeners->count; i++) {
        uv_poll_stop(&server->accept_polls[i]);
    }
}

static void on_turn_timer(uv_timer_t *handle)
{
    // The timer only makes the loop turn; on_turn() does the work.
    (void)handle;
}

// Leaves further connections in the kernel until others have finished their negotiation.
static void accept_wait(struct server *server)
{
    accept_stop(server);
    server->state = SERVER_FULL;
    uv_timer_start(&server->turn_timer, on_turn_timer, SERVER_ROOM_MS, SERVER_ROOM_MS);
}

// Waits until the next tick for a descriptor or memory. The sockets are not polled meanwhile: they
// would report themselves readable all the time.
static void accept_pause(struct server *server, int error)
{
    unsigned skipped;

    accept_stop(server);
    server->state = SERVER_PAUSED;
    loop_want_tick(&server->loop);
    if (log_limit_pass(&server->accept_failures, &skipped)) {
        log_line(server->options->log, LOG_LEVEL_WARNING,
                 "cannot accept connections: %s; trying again", strerror(error));
    }
}

static void on_acceptable(uv_poll_t *handle, int status, int events)
{
    struct server *server = handle->data;
    const struct listener *listener =
        &server->options->listeners->list[handle - server->accept_polls];

    (void)status;
    (void)events;
    for (int i = 0; i < SERVER_ACCEPT_ROUND; i++) {
        int fd;

        if (!connection_set_room(&server->connections)) {
            accept_wait(server);
            return;
        }
        fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            connection_set_add(&server->connections, fd);
            loop_want_tick(&server->loop);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            accept_pause(server, errno);
            return;
        } else if (errno == EAGAIN || errno == EINVAL) {
            return;
        }
        // Other errors concern only the one connection, which is gone (accept(2), "Error
        // handling").
    }
}

// ---- Callbacks of the loop ----------------------------------------------------------------------

static void stop_if_done(struct server *server)
{
    if (server->state == SERVER_STOPPING && server->connections.alive == 0 &&
        exports_quiet(server->options->exports)) {
        loop_stop(&server->loop);
    }
}

static unsigned on_turn(void *context)
{
    struct server *server = context;
    unsigned turn = connection_set_turn(&server->connections);

    if (server->options->exports->settle_wanted) {
        server->options->exports->settle_wanted = false;
        connection_set_settle(&server->connections);
    }
    if (server->state == SERVER_FULL && connection_set_room(&server->connections)) {
        accept_start(server);
    }
    stop_if_done(server);
    return turn;
}

static void stop(struct server *server)
{
    if (server->state == SERVER_STOPPING) {
        return;
    }
    server->state = SERVER_STOPPING;
    notify("STOPPING=1");
    log_line(server->options->log, LOG_LEVEL_INFO, "stopping");
    for (size_t i = 0; i < server->options->listeners->count; i++) {
        uv_close((uv_handle_t *)&server->accept_polls[i], NULL);
    }
    uv_timer_start(&server->turn_timer, on_turn_timer, CONNECTION_SET_LINGER_MS,
                   CONNECTION_SET_LINGER_MS);
    listeners_close(server->options->listeners);
    connection_set_stop(&server->connections);
    loop_want_tick(&server->loop);
    stop_if_done(server);
}

static void on_connections_emptied(void *context)
{
    struct server *server = context;

    if (server->options->client_fd >= 0 ||
        (server->options->exit_with_last_client && server->connections.served)) {
        stop(server);
    }
    stop_if_done(server);
}

static void on_signalled(void *context)
{
    stop(context);
}

static void on_hung_up(void *context)
{
    const struct server *server = context;
    const struct server_options *options = server->options;
    struct error err;

    if (server->state == SERVER_STOPPING) {
        return;
    }
    if (options->tls == NULL) {
        log_line(options->log, LOG_LEVEL_INFO, "SIGHUP: there is nothing to read again");
    } else if (tls_server_reload(options->tls, time(NULL), &err) < 0) {
        log_line(options->log, LOG_LEVEL_ERROR, "%s; new connections get what was there before",
                 err.text);
    } else {
        log_line(options->log, LOG_LEVEL_INFO, "the files of TLS were read again");
        tls_log_warnings(options->tls, options->log);
    }
}

static void on_dump(void *context)
{
    const struct server *server = context;

    dump_server(&server->connections, server->options->exports, server->options->log);
}

static void on_export_full(void *context)
{
    struct server *server = context;

    connection_set_find_ended(&server->connections);
}

static bool on_tick(void *context, uint64_t now)
{
    struct server *server = context;
    bool again = server->state == SERVER_STOPPING || server->state == SERVER_PAUSED;

    if (server->state == SERVER_PAUSED) {
        accept_start(server);
    }
    again |= connection_set_tick(&server->connections, now);
    again |= client_shared_tick(&server->shared);
    again |= backend_tick(server->options->backend);
    if (server->state != SERVER_STOPPING) {
        again |= exports_tick(server->options->exports, now);
    }
    return again;
}

// ---- Start and end ------------------------------------------------------------------------------

static int server_begin(struct server *server, struct error *err)
{
    const struct server_options *options = server->options;
    struct listeners *listeners = options->listeners;
    const struct loop_owner owner = {
        .context = server,
        .turn = on_turn,
        .signalled = on_signalled,
        .hung_up = on_hung_up,
        .dump = on_dump,
        .tick = on_tick,
    };
    int result;

    result = client_shared_init(&server->shared, options->access, options->log);
    if (result < 0) {
        return error_set(err, ENOMEM, "out of memory");
    }
    if (options->tls != NULL) {
        server->shared.tls = options->tls_required ? SESSION_TLS_REQUIRED : SESSION_TLS_OPTIONAL;
    }
    result = loop_init(&server->loop, options->runq, options->backend, options->signal_fd,
                       options->poll_max_ns, &owner, err);
    if (result < 0) {
        client_shared_destroy(&server->shared);
        return result;
    }
    result = loop_workers_attach(options->exports->workers, &server->loop.uv);
    if (result < 0) {
        loop_close(&server->loop);
        client_shared_destroy(&server->shared);
        return error_set(err, -result, "cannot poll the workers: %s", uv_strerror(result));
    }
    connection_set_init(&server->connections, &server->loop.uv, &server->shared, options->tls,
                        options->log, options->connections_max, on_connections_emptied, server);
    server->connections.keepalive = options->keepalive;
    uv_timer_init(&server->loop.uv, &server->turn_timer);
    for (size_t i = 0; i < listeners->count; i++) {
        result = uv_poll_init(&server->loop.uv, &server->accept_polls[i], listeners->list[i].fd);
        if (result < 0) {
            while (i-- > 0) {
                uv_close((uv_handle_t *)&server->accept_polls[i], NULL);
            }
            uv_close((uv_handle_t *)&server->turn_timer, NULL);
            loop_workers_detach(options->exports->workers);
            loop_close(&server->loop);
            client_shared_destroy(&server->shared);
            return error_set(err, -result, "cannot poll a listening socket: %s",
                             uv_strerror(result));
        }
        server->accept_polls[i].data = server;
    }
    options->exports->find_ended = on_export_full;
    options->exports->find_context = server;
    accept_start(server);
    return 0;
}

// Opens the connection of the client that was there before the server, if there is one.
static void serve_only_client(struct server *server)
{
    if (server->options->client_fd < 0) {
        return;
    }
    connection_set_add(&server->connections, server->options->client_fd);
    loop_want_tick(&server->loop);
    if (server->connections.alive == 0) {
        stop(server); // there was no memory for the connection
    }
}

int server_run(const struct server_options *options, struct error *err)
{
    struct server server = {.options = options};
    int result = server_begin(&server, err);

    if (result < 0) {
        return result;
    }
    options->ready(options->context);
    serve_only_client(&server);
    loop_run(&server.loop);
    loop_workers_detach(options->exports->workers);
    uv_close((uv_handle_t *)&server.turn_timer, NULL);
    loop_close(&server.loop);
    client_shared_destroy(&server.shared);
    return 0;
}
