// SPDX-License-Identifier: Apache-2.0
// client.h: the bridge between one NBD session and the engine: events become ops, and finished ops
// become replies. It knows nothing of sockets and loops; its owner moves the bytes.
//
// The owner calls, after bytes came or output was sent, or when client_run() asked to be called
// again:
//   client_input(), client_received()   bytes in
//   client_run()                        acts on them; tells the owner what to do next
//   client_output(), client_sent()      bytes out
// Ops finish on the run queue; the client then calls `changed`.
#ifndef LAZYCOW_SERVER_CLIENT_H
#define LAZYCOW_SERVER_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "server/client_shared.h"

// Payload memory of one connection, in bytes: two of the largest requests, or 256 of 256 KiB.
#define CLIENT_SHARE (64u << 20)
// Requests of one connection that are in flight or whose replies wait to be sent: eight times the
// deepest queue that clients use (the Linux client: 128).
#define CLIENT_REQUESTS_MAX 1024u
// Requests that one call of client_run() takes: at most a millisecond of work, so that a client
// with a full socket does not delay the others.
#define CLIENT_RUN_REQUESTS 256u
// Reads that one call of client_run() takes at first; the number doubles while more follow. So the
// first replies leave early, and client and server work at the same time, while a deep queue still
// needs few system calls.
#define CLIENT_RUN_READS 8u

// OPEN, YIELDED and STALLED can follow each other in any order.
//
//   OPEN, YIELDED, STALLED ──the conversation ends──> ENDING ──the session is dropped──> BROKEN
//      ^  │             └─────the client breaks the protocol────────────────────────────^
//      │  v
//    STARTTLS
enum client_state {
    // Wants bytes.
    CLIENT_OPEN,
    // Has bytes to act on; the owner runs it again after the other clients had their turn.
    CLIENT_YIELDED,
    // Takes nothing until replies are sent or memory is returned; the owner does not receive.
    CLIENT_STALLED,
    // The owner sends the output, does the TLS handshake, then calls client_tls_started().
    CLIENT_STARTTLS,
    // Takes nothing any more; the owner closes it when client_drained() is true as well.
    CLIENT_ENDING,
    // The owner closes it at once.
    CLIENT_BROKEN,
};

struct client;

// name is for the log and borrowed. changed runs when an op is done: there may be output, and
// client_drained() may have become true. It runs from the run queue, never inside the functions
// below. Returns NULL when there is no memory.
struct client *client_new(struct client_shared *shared, const char *name,
                          void (*changed)(void *context), void *context);

// Writes a one-line description of the client's state into text, cut to size bytes.
void client_describe(const struct client *client, char *text, size_t size);

// Frees the client; none of its ops may be in flight.
void client_free(struct client *client);

// Fills iov with the buffers to receive into and returns its length; 0: nothing can be taken now.
int client_input(struct client *client, struct iovec iov[2]);
void client_received(struct client *client, size_t bytes);

// The peer sends no more bytes. Requests that it has sent before are still done and answered.
void client_eof(struct client *client);

// Acts on the bytes received. CLIENT_BROKEN and CLIENT_ENDING are final.
enum client_state client_run(struct client *client);

// The handshake that CLIENT_STARTTLS asked for is done, and client_received() gets plaintext from
// now on. identity is the peer's proven identity, or NULL; it is borrowed for the client's life.
// Returns 0 or -ENOMEM.
int client_tls_started(struct client *client, const char *identity);
// True after client_run() has returned CLIENT_STARTTLS, until client_tls_started() is called.
bool client_wants_tls(const struct client *client);

// The server stops. A client with an export is CLIENT_ENDING from here on: no further request
// begins, and those in the engine are finished and answered. Requests that wait for memory, are
// received in part or are still in the input get no answer: a client that reconnects sends
// unanswered requests again, but would pass an error on to its guest. A client that negotiates is
// told ERR_SHUTDOWN.
void client_stop(struct client *client);

// The client has ended: another one may use its place at the export. Its ops in flight go on.
void client_leave(struct client *client);

// Drops the session: nothing more is received or sent. Ops in flight go on; the state is
// CLIENT_BROKEN.
void client_abandon(struct client *client);

size_t client_output_bytes(const struct client *client);
int client_output(struct client *client, struct iovec *iov, int max);
void client_sent(struct client *client, size_t bytes);
// A reply is settled when its payload is in the request's own buffer. Until then its output may
// change or be lost, and keeps the file's bytes that it points at from being used again. Returns
// true when all replies that wait to be sent are settled.
bool client_settled(const struct client *client);
// Settles all replies, because they have to wait. Returns false when some payload is lost.
bool client_settle(struct client *client);

// True when the last client_run() returned CLIENT_ENDING.
bool client_ending(const struct client *client);
// True when no op is in flight.
bool client_idle(const struct client *client);
// True when no op is in flight and all output was sent.
bool client_drained(const struct client *client);
// True when the client waits for payload memory and holds none itself: the others have it all.
bool client_starved(const struct client *client);
bool client_negotiated(const struct client *client);
// Returns why the client has no export so far, or NULL; *name is the start of the export's name, or
// empty. Valid until client_abandon() or client_free().
const char *client_obstacle(const struct client *client, const char **name);
// Returns why the client ended, for the log. Valid until client_abandon() or client_free().
const char *client_reason(const struct client *client);
// Returns the number of requests taken over the client's life.
uint64_t client_requests_taken(const struct client *client);

#endif
