// SPDX-License-Identifier: Apache-2.0
// session_types.h: exports, requests, events and pieces of replies, as a session and its owner exchange
// them. Plain data.
#ifndef LAZYCOW_PROTOCOL_SESSION_TYPES_H
#define LAZYCOW_PROTOCOL_SESSION_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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
    // Why this export may not be used now, for the client; NULL: it may. May be NULL itself. The text
    // outlives the call.
    const char *(*why_refused)(void *context, const struct session_export *export);
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

// Payload that is sent by reference. Embedded in the owner's request. The bytes and the reference must
// stay valid until release.
struct session_payload_ref {
    // Runs once, from session_sent() when the last byte was sent, or from session_free(); never inside
    // a reply function.
    void (*release)(struct session_payload_ref *ref);
    // Runs from session_settle(), for each piece of the payload that was not sent: has length bytes, which
    // are at data, in memory that nobody else changes or takes away. Returns where they are now, or NULL
    // when they cannot be had any more.
    const void *(*settle)(struct session_payload_ref *ref, const void *data, size_t length);
    uint32_t pieces; // private, both
    struct session_payload_ref *next;
};

// A part of a read's data, in order from the request's offset.
struct session_read_part {
    uint64_t length;  // bytes, > 0
    bool hole;        // reads as zeros; its bytes of the buffer are not looked at
    const void *data; // its bytes; NULL: in the buffer, at their place
};

// An extent of a BLOCK_STATUS answer.
struct session_status_extent {
    uint64_t length; // bytes
    uint32_t flags;  // NBD_STATE_HOLE | NBD_STATE_ZERO
    // Where ALLOCATION_DEPTH is asked for: 0 nowhere allocated, 1 in the image itself, 2 in its
    // backing file, and so on.
    uint32_t depth;
};

#endif
