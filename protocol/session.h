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

// Largest request with a payload, in bytes; advertised as the maximum block size. READ and WRITE
// only.
#define SESSION_PAYLOAD_MAX (32u << 20)
// Names and strings: the protocol's limit, in bytes ("Conventions").
#define SESSION_STRING_MAX 4096
// What is kept of a name for the log, in bytes: as much of it as tells one from another.
#define SESSION_OBSTACLE_NAME_MAX 64

struct session;

// What the server says of one export. Strings are UTF-8 and outlive the session's use of them.
struct session_export {
    const char *name;
    const char *description; // may be NULL
    uint64_t size;           // bytes
    uint16_t flags;          // NBD_FLAG_* of wire.h; the session adds those that depend on what was
                             // negotiated, SEND_DF and BLOCK_STATUS_PAYLOAD
    uint32_t block_min;      // bytes, powers of two ("Block size constraints")
    uint32_t block_preferred;
    uint32_t block_max; // largest payload
    unsigned contexts;  // SESSION_CONTEXT_* that are offered beside base:allocation
};

// "TLS": what a connection demands.
enum session_tls {
    SESSION_TLS_OFF,      // STARTTLS is refused
    SESSION_TLS_OPTIONAL, // a client may use it
    SESSION_TLS_REQUIRED, // nothing is told or served before
};

// What the session asks of its owner while negotiating. Borrowed; one may serve many sessions, and
// an owner whose exports depend on the client has one for each: the exports may be others after
// session_tls_started().
struct session_host {
    void *context;
    size_t (*export_count)(void *context);
    const struct session_export *(*export_at)(void *context, size_t index);
    bool shutting_down; // options other than ABORT get ERR_SHUTDOWN
    enum session_tls tls;
    bool empty_name_hidden; // the empty name does not stand for the first of these exports: another
                            // is named "", or an image that should have come first is not served
    // Why there is no export of this name, for the client; NULL: nothing is known of it. May be
    // NULL itself. The text outlives the call.
    const char *(*why_unknown)(void *context, const uint8_t *name, size_t length);
};

// Metadata contexts: bits in a set of them.
#define SESSION_CONTEXT_BASE_ALLOCATION (1u << 0)
#define SESSION_CONTEXT_ALLOCATION_DEPTH (1u << 1) // qemu:allocation-depth

// A request of the transmission phase, validated: a known command, flags that go with it, a range
// inside the export, a writable export where it writes, a length that is not 0 (but for FLUSH). The
// session has answered every other one itself. Plain data: copy it to keep it.
struct session_request {
    uint16_t type;   // NBD_CMD_*
    uint16_t flags;  // NBD_CMD_FLAG_*, without PAYLOAD_LEN
    uint64_t cookie; // echoed in the reply
    uint64_t offset; // bytes; 0 for FLUSH
    uint64_t length; // bytes; READ and WRITE at most SESSION_PAYLOAD_MAX; 0 for FLUSH
    void *payload;   // NBD_CMD_WRITE: what session_payload() gave, now full
    // NBD_CMD_BLOCK_STATUS: SESSION_CONTEXT_* that are asked for, at least one.
    unsigned contexts;
    uint64_t echoed_offset; // private: what the client said, for extended replies
};

enum session_event {
    SESSION_MORE,       // nothing until more bytes arrive
    SESSION_STARTTLS,   // send the output, do the handshake, then session_tls_started()
    SESSION_NEGOTIATED, // transmission phase begins; session_chosen() tells the export
    SESSION_PAYLOAD, // a WRITE of request->length bytes begins: answer with session_payload(), or
                     // do so later and leave session_next() alone until then (back-pressure)
    SESSION_REQUEST, // *request is complete; reply to it sooner or later, in any order
    // The last three end the conversation: nothing is taken in any more, and session_next() says
    // the same again.
    SESSION_DISCONNECT, // NBD_CMD_DISC: finish what is outstanding, send it, close
    SESSION_CLOSE,      // NBD_OPT_ABORT or EXPORT_NAME refused: send the output, close
    SESSION_BAD,        // the client broke the protocol, or memory ran out: close at once;
                        // session_reason() says how
};

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

// ---- Replies ------------------------------------------------------------------------------------

// Payload that is sent by reference. Embedded in the owner's request; release runs once, from
// session_sent() when the last byte of it was sent, or from session_free(); never inside a reply
// function. The bytes and the reference must stay valid until then.
struct session_payload_ref {
    void (*release)(struct session_payload_ref *ref);
    uint32_t pieces; // private, both
    struct session_payload_ref *next;
};

// Where length bytes of payload are now that were at data.
typedef const void *session_place(struct session_payload_ref *ref, const void *data, size_t length);

// A part of a read's data, in order from the request's offset.
struct session_read_part {
    uint64_t length;  // bytes, > 0
    bool hole;        // reads as zeros; its bytes of the buffer are not looked at
    const void *data; // its bytes; NULL: in the buffer, at their place
};

// Answers everything that carries no data: error is 0 or a positive errno, mapped to the wire's
// set. message (may be NULL: the session has one for each error) goes along where the reply is
// structured. A READ or BLOCK_STATUS that succeeded has its own function below.
void session_reply(struct session *s, const struct session_request *request, int error,
                   const char *message);

// Answers a READ that succeeded. data has room for request->length bytes. parts (count 0: one data
// part) tell the holes and what is elsewhere, their lengths sum to request->length; holes may be given
// only if session_read_holes() says that the reply can carry them. parts are not looked at afterwards.
void session_reply_read(struct session *s, const struct session_request *request, const void *data,
                        const struct session_read_part *parts, size_t count,
                        struct session_payload_ref *ref);
bool session_read_holes(const struct session *s, const struct session_request *request);

// An extent of a BLOCK_STATUS answer.
struct session_status_extent {
    uint64_t length; // bytes
    uint32_t flags;  // NBD_STATE_HOLE | NBD_STATE_ZERO
    // Where ALLOCATION_DEPTH is asked for: 0 nowhere allocated, 1 in the image itself, 2 in its
    // backing file, and so on.
    uint32_t depth;
};
// Extents from the request's offset, in order, at least one; they may end early or reach beyond the
// request. Each tells about all of request->contexts. The session merges, for each context, equal
// neighbours, and cuts what the request's end, the command's flags
// and the 32-bit fields ask for.
void session_reply_status(struct session *s, const struct session_request *request,
                          const struct session_status_extent *extents, size_t count);

// Bytes queued for sending.
size_t session_output_bytes(const struct session *s);
// Fills at most max iovecs with queued output; returns how many.
int session_output(struct session *s, struct iovec *iov, int max);
// Has payload that is still to be sent be elsewhere: place() is called for each piece of it, returns
// where its bytes are now, or NULL. Returns false when it did.
bool session_move_payload(struct session *s, session_place *place);
// bytes of the output were sent, from its front. Release functions run from here; they may reply.
void session_sent(struct session *s, size_t bytes);

#endif
