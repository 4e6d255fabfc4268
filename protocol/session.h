// SPDX-License-Identifier: Apache-2.0
// session.h: one NBD connection as plain data. Bytes in, events and bytes out; no sockets, no
// clock, no image. Protocol: doc/proto.md of NetworkBlockDevice/nbd, newstyle negotiation only.
//
// The owner's loop:
//   session_input()     where the next bytes go (up to two iovecs: the payload being received, then
//                       the input buffer); read from the socket into them
//   session_received()  says how many came
//   session_next()      until it says SESSION_MORE: each event is acted on before the next is asked
//                       for. Once more after session_sent(): the session takes nothing in while too
//                       much output waits, and says SESSION_MORE then, too
//   session_output()    iovecs to send; session_sent() says how many bytes went
//
// Output that the session makes by itself is bounded: OUTPUT_HELD_MAX (state.h) plus one answer.
// What the owner answers is bounded by the requests that it takes and leaves outstanding.
#ifndef LAZYCOW_PROTOCOL_SESSION_H
#define LAZYCOW_PROTOCOL_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "protocol/session_reply.h"
#include "protocol/session_types.h"

// Returns NULL when there is no memory. host is borrowed.
struct session *session_new(const struct session_host *host);
// Releases output that was not sent (its release functions run) and frees the session.
void session_free(struct session *s);

// Where to receive: fills iov[0..n) and returns n, 1 or 2; 0 when events must be taken, a payload
// given or output sent first (then do not receive), or the conversation has ended. Good until the
// next session_received() or session_next().
int session_input(struct session *s, struct iovec iov[2]);
void session_received(struct session *s, size_t bytes);

enum session_event session_next(struct session *s, struct session_request *request);
// Buffer for the payload announced by SESSION_PAYLOAD; request->length bytes, the caller's until
// SESSION_REQUEST comes with it (or the session is freed). NULL: the session throws the payload
// away and answers NBD_ENOMEM.
void session_payload(struct session *s, void *buffer);

// The TLS handshake that SESSION_STARTTLS asked for has succeeded: everything that was negotiated
// before is forgotten, and bytes received from now on are those of TLS's inside. All output of
// before must have been sent. (A failed handshake ends the connection: free the session.)
void session_tls_started(struct session *s);

bool session_in_transmission(const struct session *s); // negotiated, and not ended yet
// The export that was negotiated; NULL before.
const struct session_export *session_chosen(const struct session *s);
bool session_structured(const struct session *s);   // replies are structured, or extended
bool session_extended(const struct session *s);     // extended headers
bool session_tls(const struct session *s);          // inside TLS
unsigned session_contexts(const struct session *s); // SESSION_CONTEXT_* negotiated
// Why an export that was asked for could not be had, a constant string of one line for the log, or
// NULL; *name is the start of its name, as the client sent it.
const char *session_obstacle(const struct session *s, const char **name);
// Why the conversation ended: a constant string of one line, for the log; "" before.
const char *session_reason(const struct session *s);
// True once memory ran out while output was queued: there is a gap in the stream, session_output()
// gives nothing more, close. session_next() says SESSION_BAD.
bool session_failed(const struct session *s);

// ---- Output -------------------------------------------------------------------------------------

// Bytes queued for sending.
size_t session_output_bytes(const struct session *s);
// Fills at most max iovecs with queued output; returns how many.
int session_output(struct session *s, struct iovec *iov, int max);
// Settles all queued payload. Returns false when some of it cannot be had any more.
bool session_settle(struct session *s);
// bytes of the output were sent, from its front. Release functions run from here; they may reply.
void session_sent(struct session *s, size_t bytes);

#endif
