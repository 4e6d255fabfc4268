// SPDX-License-Identifier: Apache-2.0
// connection.h: a socket and its client (client.h), with the bytes that pass between them.
#ifndef LAZYCOW_SERVER_CONNECTION_H
#define LAZYCOW_SERVER_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <time.h>
#include <uv.h>

#include "qcow2/base/offload.h"
#include "server/client.h"
#include "server/keepalive.h"
#include "server/log.h"
#include "server/tls.h"

// Such as "connection 1234567 ([2001:db8::1]:65535)", or with the process and user behind a Unix
// socket.
#define CONNECTION_NAME_MAX 128

// Most bytes that are peeked at before they are taken: a write of 4 KiB with its header.
#define CONNECTION_PEEK_MAX 4224u

// The class that an open connection is counted in. A connection passes through them in this order.
enum connection_standing {
    CONNECTION_HALF_OPEN, // it negotiates
    // It has an export, and counts against --max-connections.
    CONNECTION_SERVED,
    // Its client has ended; requests sent before may still be in progress.
    CONNECTION_LEAVING,
    CONNECTION_STANDINGS,
};

struct connection;
TAILQ_HEAD(connection_list, connection);

// All connections of a server.
struct connection_set {
    uv_loop_t *uv;
    struct client_shared *shared;
    const struct tls_server *tls; // or NULL
    struct log *log;
    // Settings for TCP sockets; the system's unless set.
    struct keepalive keepalive;
    // Most connections that may be CONNECTION_SERVED.
    unsigned served_max;
    // connection_set_place(), for connections that have finished their negotiation.
    bool (*place)(struct connection_set *set);
    struct connection_list open; // in the order of arrival
    unsigned counts[CONNECTION_STANDINGS];
    // A connection has negotiated an export.
    bool served;
    // Connections that are open, and closed ones whose ops have not finished.
    unsigned alive;
    uint64_t next_number;
    // Connections with output to send or an end to make.
    struct connection_list send_pending;
    // Connections whose client is to run again.
    struct connection_list runnable;
    // budget.returned when the runnable clients last ran.
    uint64_t returned;
    // Since the runnable clients last ran, output was sent or a client has yielded.
    bool progress;
    // Bits of enum loop_turn for the coming turn.
    unsigned turn;
    // Limits log lines about connections over the limit.
    struct log_limit refusals;
    // Limits log lines about failed negotiations.
    struct log_limit failures;
    // Time when the log last mentioned an expired certificate.
    time_t expired_said;
    // Limits log lines about exports that clients asked for in vain.
    struct log_limit obstacles;
    // Number of connections that are CONNECTION_TLS_RUNNING.
    unsigned handshakes_running;
    // Connections that are CONNECTION_TLS_QUEUED.
    struct connection_list handshakes_queued;
    bool stopping;
    void (*emptied)(void *context); // runs when alive has become 0
    void *context;
};

//   OPEN ──last reply at a stop──> LINGERING ──the peer has ended──> CLOSING ──> CLOSED ──> freed
//    └──────────────────────────── any other end ─────────────────────^
enum connection_state {
    CONNECTION_OPEN,
    // The last reply and the end behind it were sent. Further bytes of the peer are read and
    // discarded: unread bytes would make the kernel reset the connection, and a reset overtakes
    // replies on their way.
    CONNECTION_LINGERING,
    // The socket is closed and the client abandoned; libuv still has the handle.
    CONNECTION_CLOSING,
    // Freed when its ops and its step of a handshake have ended.
    CONNECTION_CLOSED,
};

// TLS between the socket and the client. A handshake proceeds in steps, each on a worker thread.
//
//   NONE ──STARTTLS──> HANDSHAKE ──bytes came──> QUEUED ──> RUNNING ──┬──> SECURE
//                          ^─────────── more bytes are needed ────────┘
//
// At the end of the connection each state becomes NONE; RUNNING does so when its step has ended.
enum connection_tls {
    // The socket carries the session's bytes in plain.
    CONNECTION_TLS_NONE,
    // The next step needs bytes of the peer.
    CONNECTION_TLS_HANDSHAKE,
    // A step waits until fewer steps of other connections run.
    CONNECTION_TLS_QUEUED,
    // A step runs, and only its thread uses the TLS session.
    CONNECTION_TLS_RUNNING,
    // The socket carries ciphertext.
    CONNECTION_TLS_SECURE,
};

// Names of the enumerators, for a dump.
extern const char *const connection_standing_names[];
extern const char *const connection_state_names[];
extern const char *const connection_tls_names[];

struct connection {
    struct connection_set *set;
    enum connection_state state;
    TAILQ_ENTRY(connection) open_link;
    TAILQ_ENTRY(connection) send_pending_link;
    TAILQ_ENTRY(connection) runnable_link;
    TAILQ_ENTRY(connection) handshakes_queued_link;
    // In the set's list send_pending.
    bool send_pending;
    // In the set's list runnable.
    bool runnable;

    uv_poll_t poll;
    // Events that the handle is polled for.
    int polled;
    int fd;
    bool local; // a Unix socket
    // The bytes received last were exactly one request.
    bool one_came;
    // Bytes that were acted on and are still in the socket.
    size_t peeked;
    // The negotiation has failed by a decision of the server.
    bool failed;
    // The socket's buffer is full.
    bool blocked;

    struct client *client;
    // NULL before STARTTLS.
    struct tls *tls;
    enum connection_tls tls_state;
    struct offload_job handshake;
    // Result of the last step.
    enum tls_progress handshake_progress;
    enum connection_standing standing;
    // Start of its deadline for negotiating, in milliseconds.
    uint64_t since;
    // Time when the step of the handshake was queued, in milliseconds.
    uint64_t step_since;
    // Time when output was last sent or became blocked, in milliseconds.
    uint64_t progress;
    // While stopping: time when its last request ended, in milliseconds.
    uint64_t idle_since;
    // LINGERING: time when the peer last sent something, in milliseconds.
    uint64_t heard;
    char name[CONNECTION_NAME_MAX];
};

// Takes over an accepted, non-blocking socket; closes it when there is no memory.
void connection_open(struct connection_set *set, int fd);

// Receives once and lets the client act on the bytes.
void connection_receive(struct connection *connection);

// Moves on to another standing.
void connection_become(struct connection *connection, enum connection_standing standing);

// Lets the client act on the bytes that it has.
void connection_run(struct connection *connection);

// The server stops: no further request is read, and the connection ends when the requests in flight
// are done and their replies sent. A client that negotiates is told that the server stops.
void connection_stop(struct connection *connection);

// Takes the connection out of the list send_pending: sends output, and ends it when its time has
// come.
void connection_send_pending(struct connection *connection);

// True while a step of the handshake runs: TLS can be neither read nor written.
static inline bool connection_in_step(const struct connection *connection)
{
    return connection->tls_state == CONNECTION_TLS_QUEUED ||
           connection->tls_state == CONNECTION_TLS_RUNNING;
}

static inline bool connection_secure(const struct connection *connection)
{
    return connection->tls_state == CONNECTION_TLS_SECURE;
}

#endif
