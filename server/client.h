// SPDX-License-Identifier: Apache-2.0
// client.h: the bridge between one NBD session and the engine: events become ops, ops done become
// replies. It knows nothing of sockets and loops: bytes are brought to it and taken from it.
//
// The owner's part, whenever bytes came, output was sent, or client_run() said to come again:
//   client_input(), client_received()   bytes in
//   client_run()                        acts on them; says what the client is to do next
//   client_output(), client_sent()      bytes out
// Ops finish from the run queue; the client then calls `changed`.
#ifndef LAZYCOW_SERVER_CLIENT_H
#define LAZYCOW_SERVER_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "server/client_shared.h"

// Payload memory of one connection, in bytes: two requests of the largest size, or 256 of 256 KiB.
#define CLIENT_SHARE (64u << 20)
// Requests of one connection that are in flight or whose replies were not sent; eight times the
// deepest queue that clients use (the Linux client: 128).
#define CLIENT_REQUESTS_MAX 1024u
// Requests that one call of client_run() takes, so that a client with a full pipe does not keep
// the others waiting: a millisecond's worth at most.
#define CLIENT_RUN_REQUESTS 256u
// Reads among them, at first; then twice as many each time while there are more. So the first replies
// leave early, and client and server work at the same time, while a deep queue still makes few
// system calls.
#define CLIENT_RUN_READS 8u

// OPEN, YIELDED and STALLED follow each other in any order.
//
//   OPEN, YIELDED, STALLED ──the conversation ends──> ENDING ──the session is dropped──> BROKEN
//      ^  │             └─────the client breaks the protocol────────────────────────────^
//      │  v
//    STARTTLS
enum client_state {
    CLIENT_OPEN,     // wants bytes
    CLIENT_YIELDED,  // has bytes to act on; run it again when others had their turn
    CLIENT_STALLED,  // takes nothing before replies were sent or memory came back; do not read
    CLIENT_STARTTLS, // send its output, do the handshake, then client_tls_started()
    CLIENT_ENDING,   // takes nothing any more; close it when client_drained() says so, too
    CLIENT_BROKEN,   // close at once
};

struct client;

// name is for the log; it is borrowed. changed runs when an op is done: there may be output, and
// client_drained() may have become true. Never called from inside the functions below, but from the
// run queue. Returns NULL when there is no memory.
struct client *client_new(struct client_shared *shared, const char *name,
                          void (*changed)(void *context), void *context);

// Writes what the client is doing as one line into text, cut to size bytes.
void client_describe(const struct client *client, char *text, size_t size);

// Frees the client; none of its ops may be in flight.
void client_free(struct client *client);

// Where to receive: fills iov, returns its length; 0: nothing can be taken now.
int client_input(struct client *client, struct iovec iov[2]);
void client_received(struct client *client, size_t bytes);

// The client will send no more. What it asked for before is still done and answered.
void client_eof(struct client *client);

// Acts on what was received. CLIENT_BROKEN and CLIENT_ENDING are final.
enum client_state client_run(struct client *client);

// TLS runs, as CLIENT_STARTTLS asked for; what client_received() gets is its inside. identity is
// who the peer has proven to be, or NULL; it is borrowed for the client's life. Returns 0 or
// -ENOMEM.
int client_tls_started(struct client *client, const char *identity);
// The last client_run() said CLIENT_STARTTLS, and client_tls_started() was not called since.
bool client_wants_tls(const struct client *client);

// The server stops. A client that has an export is CLIENT_ENDING from here on: no further request is
// begun, those in the engine are finished and answered. Requests that wait for memory, that have been
// received in part, or that are still in the input get no answer: a client that comes back sends again
// what was not answered, and would pass an error on to its guest. A client that negotiates is told
// ERR_SHUTDOWN.
void client_stop(struct client *client);

// The client has ended, and leaves its place at the export to another one; what is in progress for it goes
// on.
void client_leave(struct client *client);

// Drops the session: nothing more is received or sent. Ops in flight go on; CLIENT_BROKEN.
void client_abandon(struct client *client);

size_t client_output_bytes(const struct client *client);
int client_output(struct client *client, struct iovec *iov, int max);
void client_sent(struct client *client, size_t bytes);
// A reply is settled when its payload is in memory of its own: until then the output may change, may be
// lost, and keeps others from what it points at. True when all replies that wait are settled.
bool client_settled(const struct client *client);
// Settles all replies, since they have to wait. Returns false when some payload cannot be had any more.
bool client_settle(struct client *client);

// The last client_run() said CLIENT_ENDING.
bool client_ending(const struct client *client);
// No op is in flight.
bool client_idle(const struct client *client);
// No op is in flight and all output was sent.
bool client_drained(const struct client *client);
// It holds no payload memory, and waits for some: others have it all.
bool client_starved(const struct client *client);
bool client_negotiated(const struct client *client);
// Why the client has not got an export so far, or NULL; *name is the start of the export's name, or
// empty. Good until client_abandon() or client_free().
const char *client_obstacle(const struct client *client, const char **name);
// Why the client ended, for the log. Good until client_abandon() or client_free().
const char *client_reason(const struct client *client);
// Requests that were taken, over its life.
uint64_t client_requests_taken(const struct client *client);

#endif
