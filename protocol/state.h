// SPDX-License-Identifier: Apache-2.0
// state.h: the state of a session, for the modules of protocol/ only.
#ifndef LAZYCOW_PROTOCOL_STATE_H
#define LAZYCOW_PROTOCOL_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol/input.h"
#include "protocol/output.h"
#include "protocol/session_types.h"

// Most bytes of copied output (headers, option replies, status replies; not read payload) that may
// wait while the session takes more input. 10 000 small replies are more than any client has
// outstanding, so only a client that does not read its replies is held up.
#define OUTPUT_HELD_MAX (256u << 10)

// The place of the next bytes in the conversation.
enum phase {
    // The greeting was sent, client flags are expected.
    PHASE_CLIENT_FLAGS,
    PHASE_OPTION, // an option's header or data
    // STARTTLS was answered, and the owner does the handshake.
    PHASE_TLS,
    PHASE_OPTION_SKIP, // data of an option too large to be kept
    PHASE_REQUEST,     // a request's header
    // A WRITE was announced, and its buffer was not given yet.
    PHASE_PAYLOAD_WANTED,
    PHASE_PAYLOAD,      // a WRITE's payload, into its buffer
    PHASE_PAYLOAD_SKIP, // payload of a refused request
    PHASE_END,          // ended; end tells how
};

// Form of the answers in the transmission phase.
enum reply_mode { REPLY_SIMPLE, REPLY_STRUCTURED, REPLY_EXTENDED };

struct session {
    const struct session_host *host;
    enum phase phase;
    // PHASE_END: the event that session_next() returns.
    enum session_event end;
    const char *reason;
    struct input input;
    struct output output;

    // Results of the negotiation.
    bool fixed_newstyle; // client flags
    bool no_zeroes;
    // Everything below was negotiated inside TLS.
    bool tls;
    enum reply_mode mode;
    unsigned contexts;                            // SESSION_CONTEXT_*
    const struct session_export *contexts_export; // the export that contexts were set for
    const struct session_export *chosen;          // the export of the transmission phase
    uint16_t flags;                               // transmission flags that were sent

    // For the log: why GO or EXPORT_NAME was last refused, and the start of the requested name.
    const char *obstacle; // a constant, or NULL
    char obstacle_name[SESSION_OBSTACLE_NAME_MAX + 1];

    // PHASE_OPTION_SKIP: the option whose data is thrown away.
    uint32_t option;
    uint32_t option_length;
    // PHASE_OPTION_SKIP, PHASE_PAYLOAD_SKIP: bytes that are still to come.
    uint64_t skip;

    // PHASE_PAYLOAD*: the request whose payload is coming.
    struct session_request request;
    // PHASE_PAYLOAD_SKIP: the message of the error reply.
    const char *refusal;
    int error; // PHASE_PAYLOAD_SKIP: a positive errno
    // PHASE_PAYLOAD: the place of the next byte.
    uint8_t *payload;
    uint64_t payload_left;
};

// Result of a step of the conversation.
enum step {
    STEP_AGAIN, // some input was taken, continue
    STEP_MORE,  // input, or room for output, is missing
    STEP_EVENT, // *event is for the owner
};

static inline bool session_output_full(const struct session *s)
{
    return s->output.copied > OUTPUT_HELD_MAX;
}

// Ends the conversation with an event. reason is a constant.
static inline enum step session_end(struct session *s, enum session_event event, const char *reason)
{
    s->phase = PHASE_END;
    s->end = event;
    s->reason = reason;
    return STEP_AGAIN;
}

#endif
