// SPDX-License-Identifier: Apache-2.0
// connection.h: a socket and its client (client.h): bytes from the one to the other and back.
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

// "connection 1234567 ([2001:db8::1]:65535)", or the process and user behind a Unix socket.
#define CONNECTION_NAME_MAX 128

// Fewer bytes than these are received by looking at them first: a write of 4 KiB with its header.
#define CONNECTION_PEEK_MAX 4224u

// What an open connection counts as, in the order in which it becomes so.
enum connection_standing {
    CONNECTION_HALF_OPEN, // it negotiates
    CONNECTION_SERVED,    // it has an export, and a place among --max-connections
    CONNECTION_LEAVING,   // its client has ended; requests of before may still be in progress
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
    struct keepalive keepalive; // of TCP sockets; the system's unless set
    unsigned served_max;        // connections that may be CONNECTION_SERVED
    // connection_set_place(), for a connection that has negotiated.
    bool (*place)(struct connection_set *set);
    struct connection_list open; // in the order of arrival
    unsigned counts[CONNECTION_STANDINGS];
    bool served;    // there was one that negotiated an export
    unsigned alive; // open ones, and closed ones whose ops have not finished
    uint64_t next_number;
    struct connection_list send_pending; // with output to send or an end to make
    struct connection_list runnable;     // whose client is to run again
    uint64_t returned;                   // budget.returned when those last ran
    bool progress;               // since then: some output was sent, or a client has yielded
    unsigned turn;               // bits of enum loop_turn, for the turn that comes
    struct log_limit refusals;   // lines about connections over the limit
    struct log_limit failures;   // lines about negotiations that have failed
    time_t expired_said;         // when the log last told of an expired certificate
    struct log_limit obstacles;  // lines about exports that were not had
    unsigned handshakes_running; // connections that are CONNECTION_TLS_RUNNING
    struct connection_list handshakes_queued; // those that are CONNECTION_TLS_QUEUED
    bool stopping;
    void (*emptied)(void *context); // runs when alive has become 0
    void *context;
};

//   OPEN ──last reply at a stop──> LINGERING ──the peer has ended──> CLOSING ──> CLOSED ──> freed
//    └──────────────────────────── any other end ─────────────────────^
enum connection_state {
    CONNECTION_OPEN,
    // The last reply was sent, and the end behind it. What still comes from the peer is thrown away,
    // lest the kernel reset the connection: a reset overtakes replies that are on their way.
    CONNECTION_LINGERING,
    CONNECTION_CLOSING, // the socket is closed, the client abandoned; libuv still has the handle
    CONNECTION_CLOSED,  // freed when its ops and its step of a handshake have ended
};

// TLS between the socket and the client. A handshake goes on in steps, each on another thread.
//
//   NONE ──STARTTLS──> HANDSHAKE ──bytes came──> QUEUED ──> RUNNING ──┬──> SECURE
//                          ^─────────── more bytes are needed ────────┘
//
// At the end of the connection each becomes NONE; RUNNING does when its step has ended.
enum connection_tls {
    CONNECTION_TLS_NONE,      // the socket carries what the client says and hears
    CONNECTION_TLS_HANDSHAKE, // the next step needs bytes of the peer
    CONNECTION_TLS_QUEUED,    // a step waits for other connections' to end
    CONNECTION_TLS_RUNNING,   // a step runs, and has the TLS session to itself
    CONNECTION_TLS_SECURE,    // the socket carries ciphertext
};

// Their names, for a dump.
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
    bool send_pending; // it is in that list of the set
    bool runnable;     // and in that one

    uv_poll_t poll;
    int polled; // events that the handle waits for
    int fd;
    bool local;    // a Unix socket
    bool one_came; // the last bytes that came were one request
    size_t peeked; // bytes that were acted on and are still in the socket
    bool failed;   // its negotiation has, as far as the server is concerned
    bool blocked;  // the socket takes no more at the moment

    struct client *client;
    struct tls *tls; // from STARTTLS on; then the socket carries its ciphertext
    enum connection_tls tls_state;
    struct offload_job handshake;
    enum tls_progress handshake_progress; // the answer of the last step
    enum connection_standing standing;
    uint64_t since;      // when its deadline for negotiating began to run, milliseconds
    uint64_t step_since; // when the step of the handshake was queued, milliseconds
    uint64_t progress;   // when output was last sent or got blocked, milliseconds
    uint64_t idle_since; // while stopping: when its last request ended, milliseconds
    uint64_t heard;      // LINGERING: when the peer last sent something, milliseconds
    char name[CONNECTION_NAME_MAX];
};

// Takes over an accepted, non-blocking socket; closes it when there is no memory.
void connection_open(struct connection_set *set, int fd);

// Receives once and acts on it.
void connection_receive(struct connection *connection);

// Moves on to another standing.
void connection_become(struct connection *connection, enum connection_standing standing);

// Lets the client go on with what it has.
void connection_run(struct connection *connection);

// The server stops: no further request is read, and the connection ends when the requests in flight are
// done and their replies sent. One that negotiates is told that the server stops.
void connection_stop(struct connection *connection);

// Takes the connection from the list of those that are to send: sends output, ends it when its time has
// come.
void connection_send_pending(struct connection *connection);

// A step of the handshake is under way: TLS can be neither read nor written.
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
