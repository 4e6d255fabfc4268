// SPDX-License-Identifier: Apache-2.0
// session_types.h: the exports, requests, events and parts of replies that a session and its owner
// exchange. Plain data.
#ifndef LAZYCOW_PROTOCOL_SESSION_TYPES_H
#define LAZYCOW_PROTOCOL_SESSION_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Largest payload of a READ or WRITE in bytes; advertised as the maximum block size.
#define SESSION_PAYLOAD_MAX (32u << 20)
// Longest name or string in bytes: the protocol's limit ("Conventions").
#define SESSION_STRING_MAX 4096
// Bytes of a name that are kept for the log: enough to tell one name from another.
#define SESSION_OBSTACLE_NAME_MAX 64

struct session;

// An export as it is described to clients. Strings are UTF-8 and outlive the session's use of them.
struct session_export {
    const char *name;
    const char *description; // may be NULL
    uint64_t size;           // bytes
    // NBD_FLAG_* of wire.h. The session adds those that depend on the negotiation: SEND_DF and
    // BLOCK_STATUS_PAYLOAD.
    uint16_t flags;
    // Bytes, powers of two ("Block size constraints").
    uint32_t block_min;
    uint32_t block_preferred;
    uint32_t block_max; // largest payload
    // SESSION_CONTEXT_* that are offered beside base:allocation.
    unsigned contexts;
};

// "TLS": the server's policy for a connection.
enum session_tls {
    SESSION_TLS_OFF,      // STARTTLS is refused
    SESSION_TLS_OPTIONAL, // a client may use it
    // Only STARTTLS and ABORT are answered before TLS.
    SESSION_TLS_REQUIRED,
};

// The session's view of its owner while negotiating. Borrowed; one host may serve many sessions. An
// owner whose exports depend on the client has a host for each session: the exports may change in
// session_tls_started().
struct session_host {
    void *context;
    size_t (*export_count)(void *context);
    const struct session_export *(*export_at)(void *context, size_t index);
    bool shutting_down; // options other than ABORT get ERR_SHUTDOWN
    enum session_tls tls;
    // The empty name does not stand for the first of these exports: another export has the empty
    // name, or an image that should have come first is not served.
    bool empty_name_hidden;
    // Returns why no export has this name, a text for the client that outlives the call; NULL:
    // nothing is known of the name. May be NULL.
    const char *(*why_unknown)(void *context, const uint8_t *name, size_t length);
    // Returns why this export may not be used now, a text for the client that outlives the call;
    // NULL: it may be used. May be NULL.
    const char *(*why_refused)(void *context, const struct session_export *export);
};

// Metadata contexts, as bits of a set.
#define SESSION_CONTEXT_BASE_ALLOCATION (1u << 0)
#define SESSION_CONTEXT_ALLOCATION_DEPTH (1u << 1) // qemu:allocation-depth

// A valid request of the transmission phase: a known command with valid flags, a range inside the
// export, a writable export if it writes, and a length that is not 0 (except FLUSH). The session
// has answered every other request itself. Plain data: copy it to keep it.
struct session_request {
    uint16_t type;   // NBD_CMD_*
    uint16_t flags;  // NBD_CMD_FLAG_*, without PAYLOAD_LEN
    uint64_t cookie; // echoed in the reply
    uint64_t offset; // bytes; 0 for FLUSH
    // Bytes. READ and WRITE: at most SESSION_PAYLOAD_MAX. FLUSH: 0.
    uint64_t length;
    // NBD_CMD_WRITE: the buffer from session_payload(), now full.
    void *payload;
    // NBD_CMD_BLOCK_STATUS: SESSION_CONTEXT_* that are asked for, at least one.
    unsigned contexts;
    // Private: the client's offset, for extended replies.
    uint64_t echoed_offset;
};

enum session_event {
    SESSION_MORE, // nothing until more bytes arrive
    // Send the output, do the handshake, then call session_tls_started().
    SESSION_STARTTLS,
    // The transmission phase begins; session_chosen() returns the export.
    SESSION_NEGOTIATED,
    // A WRITE of request->length bytes begins: call session_payload(). To apply back-pressure, call
    // it later, and do not call session_next() before.
    SESSION_PAYLOAD,
    // *request is complete. Reply to it sooner or later, in any order.
    SESSION_REQUEST,
    // The last three events end the conversation: the session takes no more input, and
    // session_next() returns the event again.
    // NBD_CMD_DISC: finish outstanding requests, send the output, close.
    SESSION_DISCONNECT,
    // NBD_OPT_ABORT, or EXPORT_NAME refused: send the output, close.
    SESSION_CLOSE,
    // The client broke the protocol, or memory ran out: close at once. session_reason() tells why.
    SESSION_BAD,
};

// Payload that is sent by reference. Embedded in the owner's request. The bytes and the reference
// stay valid until release.
struct session_payload_ref {
    // Runs once: from session_sent() when the last byte of the payload was sent, or from
    // session_free(); never inside a reply function.
    void (*release)(struct session_payload_ref *ref);
    // Runs from session_settle() for each piece of the payload that was not sent: makes sure that
    // its length bytes, which are at data, are in memory that nobody else changes or takes away.
    // Returns their new address, or NULL when they cannot be read any more.
    const void *(*settle)(struct session_payload_ref *ref, const void *data, size_t length);
    uint32_t pieces; // private, both
    struct session_payload_ref *next;
};

// A part of a read's data. Parts are in order from the request's offset.
struct session_read_part {
    uint64_t length; // bytes, > 0
    // Reads as zeros; its bytes of the buffer are not used.
    bool hole;
    // Address of its bytes; NULL: in the buffer, at their place.
    const void *data;
};

// An extent of a BLOCK_STATUS answer.
struct session_status_extent {
    uint64_t length; // bytes
    uint32_t flags;  // NBD_STATE_HOLE | NBD_STATE_ZERO
    // For ALLOCATION_DEPTH: 1: allocated in the image itself, 2: in its backing image, …; 0:
    // nowhere.
    uint32_t depth;
};

#endif
