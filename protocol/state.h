// SPDX-License-Identifier: Apache-2.0
// state.h: what a session knows. Only the modules of protocol/ look inside.
#ifndef LAZYCOW_PROTOCOL_STATE_H
#define LAZYCOW_PROTOCOL_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol/input.h"
#include "protocol/output.h"
#include "protocol/session_types.h"

// Copied output (headers, option replies, status replies; not read payload) that may wait while the
// session takes more in, in bytes. 10 000 small replies: more than any client has outstanding, so
// that only one that does not read its replies is ever held up.
#define OUTPUT_HELD_MAX (256u << 10)

// Where in the conversation the next bytes belong.
enum phase {
    PHASE_CLIENT_FLAGS,   // the greeting was sent, client flags are expected
    PHASE_OPTION,         // an option's header or data
    PHASE_TLS,            // STARTTLS was answered, the handshake is the owner's
    PHASE_OPTION_SKIP,    // data of an option too large to be kept
    PHASE_REQUEST,        // a request's header
    PHASE_PAYLOAD_WANTED, // a WRITE was announced, its buffer is not there yet
    PHASE_PAYLOAD,        // into that buffer
    PHASE_PAYLOAD_SKIP,   // payload of a request that is refused
    PHASE_END,            // ended; state.end says how
};

// How the transmission phase answers.
enum reply_mode { REPLY_SIMPLE, REPLY_STRUCTURED, REPLY_EXTENDED };

struct session {
    const struct session_host *host;
    enum phase phase;
    enum session_event end; // PHASE_END: what session_next() says
    const char *reason;
    struct input input;
    struct output output;

    // Negotiated.
    bool fixed_newstyle; // client flags
    bool no_zeroes;
    bool tls; // everything below was negotiated inside of TLS
    enum reply_mode mode;
    unsigned contexts;                            // SESSION_CONTEXT_*
    const struct session_export *contexts_export; // the one they were set for
    const struct session_export *chosen;          // transmission phase
    uint16_t flags;                               // transmission flags that were sent

    // For the log: why GO or EXPORT_NAME was last refused, and the start of the name asked for.
    const char *obstacle; // a constant, or NULL
    char obstacle_name[SESSION_OBSTACLE_NAME_MAX + 1];

    // PHASE_OPTION_SKIP: the option whose data is thrown away.
    uint32_t option;
    uint32_t option_length;
    // PHASE_OPTION_SKIP, PHASE_PAYLOAD_SKIP: bytes still to come.
    uint64_t skip;

    // PHASE_PAYLOAD*: the request whose payload is coming.
    struct session_request request;
    const char *refusal; // PHASE_PAYLOAD_SKIP: the message that goes with
    int error;           // this errno
    uint8_t *payload;    // PHASE_PAYLOAD: where the next byte goes
    uint64_t payload_left;
};

// What became of a step of the conversation.
enum step {
    STEP_AGAIN, // something was taken in, go on
    STEP_MORE,  // bytes, or room for output, are missing
    STEP_EVENT, // *event is for the owner
};

static inline bool session_output_full(const struct session *s)
{
    return s->output.copied > OUTPUT_HELD_MAX;
}

// Ends the conversation. reason is a constant.
static inline enum step session_end(struct session *s, enum session_event event, const char *reason)
{
    s->phase = PHASE_END;
    s->end = event;
    s->reason = reason;
    return STEP_AGAIN;
}

#endif
