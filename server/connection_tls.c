// SPDX-License-Identifier: Apache-2.0
#include "server/connection_tls.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>

#include "qcow2/base/container.h"
#include "server/connection_end.h"
#include "server/tls.h"
#include "server/tls_log.h"
#include "server/loop_workers.h"

// Iovecs of the client's output that are taken at a time: replies to 32 reads, with their data.
#define TLS_IOV_MAX 64
// Handshake steps that run at a time: one, and a second one so that a thread need not wait for the
// loop in between. That makes a thousand connections a second, or a hundred with the largest keys.
// The other threads stay free for reads of compressed clusters, which a flood of handshakes would
// otherwise delay for seconds.
#define TLS_STEPS_MAX 2u

bool connection_tls_begin(struct connection *connection)
{
    struct connection_set *set = connection->set;

    assert(connection->tls == NULL);
    tls_log_expired(set->tls, set->log, time(NULL), &set->expired_said);
    connection->tls = tls_new(set->tls);
    if (connection->tls == NULL) {
        connection_close(connection, "no memory for TLS");
        return false;
    }
    connection->tls_state = CONNECTION_TLS_HANDSHAKE;
    return true;
}

// Sends the alert, if the socket takes it, and closes.
static void handshake_failed(struct connection *connection)
{
    struct iovec iov;

    if (tls_output(connection->tls, &iov) > 0) {
        (void)send(connection->fd, iov.iov_base, iov.iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    connection_close(connection, tls_reason(connection->tls));
}

// The handshake is done: from now on bytes are for the client.
static void handshake_done(struct connection *connection)
{
    char description[64];

    if (client_tls_started(connection->client, tls_identity(connection->tls)) < 0) {
        connection_close(connection, "no memory for TLS");
        return;
    }
    connection->tls_state = CONNECTION_TLS_SECURE;
    tls_describe(connection->tls, description, sizeof(description));
    log_line(connection->set->log, LOG_LEVEL_DEBUG, "%s: %s", connection->name, description);
    connection_run(connection);
}

static struct connection *connection_of(struct offload_job *job)
{
    return container_of(job, struct connection, handshake);
}

// Runs on a worker thread.
static void take_step(struct offload_job *job)
{
    struct connection *connection = connection_of(job);

    connection->handshake_progress = tls_handshake(connection->tls);
}

static void on_step_ended(struct task *task);

static void start_step(struct connection *connection)
{
    struct connection_set *set = connection->set;

    connection->tls_state = CONNECTION_TLS_RUNNING;
    set->handshakes_running++;
    connection->handshake = (struct offload_job){.work = take_step, .task = {.run = on_step_ended}};
    loop_workers_run(set->shared->access->exports->workers, &connection->handshake);
}

static void leave_queue(struct connection *connection)
{
    TAILQ_REMOVE(&connection->set->handshakes_queued, connection, handshakes_queued_link);
    connection->tls_state = CONNECTION_TLS_HANDSHAKE;
}

static void on_step_ended(struct task *task)
{
    struct connection *connection = connection_of(container_of(task, struct offload_job, task));
    struct connection_set *set = connection->set;
    struct connection *next = TAILQ_FIRST(&set->handshakes_queued);

    set->handshakes_running--;
    if (next != NULL) {
        leave_queue(next);
        start_step(next);
    }
    connection->tls_state = CONNECTION_TLS_HANDSHAKE;
    connection->since += uv_now(set->uv) - connection->step_since;
    connection->progress = uv_now(set->uv);
    if (connection->state != CONNECTION_OPEN) {
        connection_tls_end(connection);
        connection_free_if_done(connection);
        return;
    }
    switch (connection->handshake_progress) {
    case TLS_MORE:
        connection_run(connection);
        break;
    case TLS_FAILED:
        handshake_failed(connection);
        break;
    case TLS_DONE:
        handshake_done(connection);
        break;
    }
}

void connection_tls_handshake(struct connection *connection)
{
    struct connection_set *set = connection->set;

    assert(connection->tls_state == CONNECTION_TLS_HANDSHAKE);
    connection->step_since = uv_now(set->uv);
    if (set->handshakes_running < TLS_STEPS_MAX) {
        start_step(connection);
        return;
    }
    connection->tls_state = CONNECTION_TLS_QUEUED;
    TAILQ_INSERT_TAIL(&set->handshakes_queued, connection, handshakes_queued_link);
}

bool connection_tls_write(struct connection *connection)
{
    struct client *client = connection->client;

    // Each round takes at least one record, or finds no room and ends.
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
    if (connection->tls_state == CONNECTION_TLS_QUEUED) {
        leave_queue(connection);
    }
    if (connection->tls_state == CONNECTION_TLS_RUNNING) {
        return; // on_step_ended() calls tls_free()
    }
    tls_free(connection->tls);
    connection->tls = NULL;
    connection->tls_state = CONNECTION_TLS_NONE;
}
