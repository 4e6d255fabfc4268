// SPDX-License-Identifier: Apache-2.0
// session.h: one NBD connection as plain data. Bytes in, events and bytes out; no sockets, no
// clock, no image. Protocol: doc/proto.md of NetworkBlockDevice/nbd, newstyle negotiation only.
//
// The owner's loop:
//   session_input()     returns the place for the next bytes (up to two iovecs: the payload that is
//                       being received, then the input buffer); the owner receives into them
//   session_received()  tells how many bytes came
//   session_next()      returns an event; the owner handles it and asks again, until SESSION_MORE.
//                       The owner asks once more after session_sent(): while too much output waits
//                       the session takes no input and also returns SESSION_MORE
//   session_output()    returns iovecs to send; session_sent() tells how many bytes went
//
// The session bounds its own output to OUTPUT_HELD_MAX (state.h) plus one answer. The requests that
// the owner takes and leaves outstanding bound the output of the owner's answers.
#ifndef LAZYCOW_PROTOCOL_SESSION_H
#define LAZYCOW_PROTOCOL_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "protocol/session_reply.h"
#include "protocol/session_types.h"

// Returns NULL without memory. host is borrowed.
struct session *session_new(const struct session_host *host);
// Drops output that was not sent (its release functions run) and frees the session.
void session_free(struct session *s);

// Fills iov[0..n) with the room for the next bytes and returns n, 1 or 2. Returns 0, and the owner
// does not receive, while events must be taken, a payload given or output sent first, or when the
// conversation has ended. The room is valid until the next session_received() or session_next().
int session_input(struct session *s, struct iovec iov[2]);
void session_received(struct session *s, size_t bytes);

enum session_event session_next(struct session *s, struct session_request *request);
// Gives the buffer for the payload that SESSION_PAYLOAD announced, of request->length bytes. It
// belongs to the session until SESSION_REQUEST returns it, or the session is freed. With NULL the
// session throws the payload away and answers NBD_ENOMEM.
void session_payload(struct session *s, void *buffer);

// The TLS handshake that SESSION_STARTTLS asked for has succeeded: the session forgets everything
// that was negotiated before, and further bytes are those inside TLS. All earlier output must have
// been sent. (After a failed handshake the owner frees the session.)
void session_tls_started(struct session *s);

bool session_in_transmission(const struct session *s); // negotiated, and not ended yet
// Returns the export that was negotiated; NULL before.
const struct session_export *session_chosen(const struct session *s);
bool session_structured(const struct session *s);   // replies are structured, or extended
bool session_extended(const struct session *s);     // extended headers
bool session_tls(const struct session *s);          // inside TLS
unsigned session_contexts(const struct session *s); // SESSION_CONTEXT_* negotiated
// Returns why the client was refused an export, a constant string of one line for the log, or NULL.
// *name is the start of the export's name, as the client sent it.
const char *session_obstacle(const struct session *s, const char **name);
// Returns why the conversation ended, a constant string of one line for the log; "" before.
const char *session_reason(const struct session *s);
// Returns true when memory ran out while output was queued. The stream then has a gap:
// session_output() returns nothing more, session_next() returns SESSION_BAD, and the owner closes.
bool session_failed(const struct session *s);

// ---- Output -------------------------------------------------------------------------------------

// Returns the bytes queued for sending.
size_t session_output_bytes(const struct session *s);
// Fills at most max iovecs with queued output. Returns how many.
int session_output(struct session *s, struct iovec *iov, int max);
// Settles all queued payload. Returns false when some of it cannot be read any more.
bool session_settle(struct session *s);
// bytes of output were sent, from its front. Runs release functions, which may reply.
void session_sent(struct session *s, size_t bytes);

#endif
