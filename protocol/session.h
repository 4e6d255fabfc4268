// SPDX-License-Identifier: Apache-2.0
// session.h: one NBD connection as plain data. Bytes in, events and bytes out; no sockets, no
// clock, no image. Protocol: doc/proto.md of NetworkBlockDevice/nbd, newstyle negotiation only.
//
// The owner's loop:
//   session_input()    where the next bytes go (up to two iovecs: the payload being received, then
//   the
//                      input buffer); read from the socket into them
//   session_received() says how many came
//   session_next()     until it says SESSION_MORE: each event is acted on before the next is asked
//   for session_output()   iovecs to send; session_sent() says how many bytes went
#ifndef LAZYCOW_PROTOCOL_SESSION_H
#define LAZYCOW_PROTOCOL_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

// Largest request with a payload, in bytes; advertised as the maximum block size. READ and WRITE
// only.
#define SESSION_PAYLOAD_MAX (32u << 20)
// Names and strings: the protocol's limit, in bytes ("Conventions").
#define SESSION_STRING_MAX 4096

struct session;

// What the server says of one export. Strings are UTF-8 and outlive the session's use of them.
struct session_export {
    const char *name;
    const char *description; // may be NULL
    uint64_t size;           // bytes
    uint16_t flags;          // NBD_FLAG_* of wire.h, without SEND_DF (the session adds it)
    uint32_t block_min;      // bytes, powers of two ("Block size constraints")
    uint32_t block_preferred;
    uint32_t block_max; // largest payload
};

// What the session asks of its owner while negotiating. Borrowed; one may serve many sessions.
struct session_host {
    void *context;
    size_t (*export_count)(void *context);
    const struct session_export *(*export_at)(void *context, size_t index);
    bool shutting_down; // options other than ABORT get ERR_SHUTDOWN
};

// base:allocation is the only metadata context so far.
#define SESSION_CONTEXT_BASE_ALLOCATION 1u // bit in a set of contexts

// A request of the transmission phase, validated: a known command, flags that go with it, a range
// inside the export, a writable export where it writes. The session has answered every other one
// itself.
struct session_request {
    uint16_t type;   // NBD_CMD_*
    uint16_t flags;  // NBD_CMD_FLAG_*
    uint64_t cookie; // echoed in the reply
    uint64_t offset; // bytes
    uint64_t length; // bytes
    void *payload;   // NBD_CMD_WRITE: what session_payload() gave, now full
};

enum session_event {
    SESSION_MORE,       // nothing until more bytes arrive
    SESSION_NEGOTIATED, // transmission phase begins; session_chosen() tells the export
    SESSION_PAYLOAD, // a WRITE of request->length bytes begins: answer with session_payload(), or
                     // do so later and leave session_next() alone until then (back-pressure)
    SESSION_REQUEST,    // *request is complete; reply to it sooner or later, in any order
    SESSION_DISCONNECT, // NBD_CMD_DISC: finish what is outstanding, send it, close
    SESSION_CLOSE,      // NBD_OPT_ABORT or EXPORT_NAME refused: send the output, close
    SESSION_BAD,        // the client broke the protocol: close at once; session_reason() says how
};

// Returns NULL when there is no memory. host is borrowed.
struct session *session_new(const struct session_host *host);
// Releases output that was not sent (its release functions run) and frees the session.
void session_free(struct session *s);

// Where to receive: fills iov[0..n) and returns n, 1 or 2; 0 when events must be taken or a payload
// given first (the input buffer is full).
int session_input(struct session *s, struct iovec iov[2]);
void session_received(struct session *s, size_t bytes);

enum session_event session_next(struct session *s, struct session_request *request);
// Buffer for the payload announced by SESSION_PAYLOAD; request->length bytes, the caller's.
void session_payload(struct session *s, void *buffer);

bool session_in_transmission(const struct session *s);
const struct session_export *session_chosen(const struct session *s);
bool session_structured(const struct session *s);    // replies are structured
unsigned session_contexts(const struct session *s);  // SESSION_CONTEXT_* negotiated
const char *session_reason(const struct session *s); // one line, for the log

// ---- Replies ------------------------------------------------------------------------------------

// Payload that is sent by reference. Embedded in the owner's request; release runs once, when the
// last byte of it was sent or the session is freed. It must stay valid until then.
struct session_payload_ref {
    void (*release)(struct session_payload_ref *ref);
    uint32_t pieces; // private
};

// A part of a read's data, in order from the request's offset.
struct session_read_part {
    uint64_t length; // bytes, > 0
    bool hole;       // reads as zeros; its bytes of the buffer are not looked at
};

// Answers everything that carries no data: error is 0 or a positive errno, mapped to the wire's
// set. message (may be NULL) goes along where the reply is structured.
void session_reply(struct session *s, const struct session_request *request, int error,
                   const char *message);

// Answers a READ that succeeded. data holds request->length bytes. parts (count 0: one data part)
// tell the holes; they may be given only if session_read_holes() says that the reply can carry
// them.
void session_reply_read(struct session *s, const struct session_request *request, const void *data,
                        const struct session_read_part *parts, size_t count,
                        struct session_payload_ref *ref);
bool session_read_holes(const struct session *s, const struct session_request *request);

// An extent of a BLOCK_STATUS answer.
struct session_status_extent {
    uint64_t length; // bytes
    uint32_t flags;  // NBD_STATE_HOLE | NBD_STATE_ZERO
};
// Extents from the request's offset, in order, at least one. The session merges equal neighbours,
// cuts what the command's flags and the 32-bit fields ask for.
void session_reply_status(struct session *s, const struct session_request *request,
                          const struct session_status_extent *extents, size_t count);

// Bytes queued for sending.
size_t session_output_bytes(const struct session *s);
// Fills at most max iovecs with queued output; returns how many.
int session_output(struct session *s, struct iovec *iov, int max);
void session_sent(struct session *s, size_t bytes);

#endif
