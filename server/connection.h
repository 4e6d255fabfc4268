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
    struct connection_list dirty;   // with output to send or an end to make
    struct connection_list waiting; // whose client is to run again
    uint64_t returned;              // budget.returned when those last ran
    bool progress;                  // since then: some output was sent, or a client has yielded
    unsigned told;                  // bits of enum loop_turn, for the turn that comes
    struct log_limit refusals;      // lines about connections over the limit
    struct log_limit failures;      // lines about negotiations that have failed
    time_t expired_said;            // when the log last told of an expired certificate
    struct log_limit obstacles;     // lines about exports that were not had
    unsigned shaking;               // steps of handshakes that run on other threads
    struct connection_list shakers; // whose step waits for one of these to end
    bool stopping;
    void (*emptied)(void *context); // runs when alive has become 0
    void *context;
};

// OPEN --> LINGERING --> CLOSED, or straight to CLOSED.
enum connection_state {
    CONNECTION_OPEN,
    // The last reply was sent, and the end behind it. What still comes from the peer is thrown away,
    // lest the kernel reset the connection: a reset overtakes replies that are on their way.
    CONNECTION_LINGERING,
    CONNECTION_CLOSED, // the socket is closed, the client abandoned
};

struct connection {
    struct connection_set *set;
    enum connection_state state;
    TAILQ_ENTRY(connection) open_link;
    TAILQ_ENTRY(connection) dirty_link;
    TAILQ_ENTRY(connection) waiting_link;
    TAILQ_ENTRY(connection) shakers_link;
    bool dirty;
    bool waiting;

    uv_poll_t poll;
    int polled; // events that the handle waits for
    int fd;
    bool local;         // a Unix socket
    bool one_came;      // the last bytes that came were one request
    size_t peeked;      // bytes that were acted on and are still in the socket
    bool failed;        // its negotiation has, as far as the server is concerned
    bool blocked;       // the socket takes no more at the moment
    bool handle_closed; // libuv is done with the handle

    struct client *client;
    struct tls *tls;  // from STARTTLS on; then the socket carries its ciphertext
    bool secure;      // its handshake is done
    bool shaking;     // a step of the handshake runs on another thread, which has tls to itself,
                      // or is to run there
    bool shake_waits; // the latter
    struct offload_job handshake;
    enum tls_progress handshake_progress; // what the last step said
    enum connection_standing standing;
    uint64_t since;         // when its deadline for negotiating began to run, milliseconds
    uint64_t shaking_since; // milliseconds
    uint64_t progress;      // when output was last sent or got blocked, milliseconds
    uint64_t idle_since;    // while stopping: when its last request ended, milliseconds
    uint64_t heard;         // LINGERING: when the peer last sent something, milliseconds
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

// Takes the connection from the list of dirty ones: sends output, ends it when its time has come.
void connection_flush(struct connection *connection);

#endif
