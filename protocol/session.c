// SPDX-License-Identifier: Apache-2.0
// session.c: one connection, from greeting to disconnect ("Protocol phases").
//
//   CLIENT_FLAGS --> OPTION --> REQUEST <--> PAYLOAD_WANTED --> PAYLOAD --> REQUEST
//                    |   ^            \<---> PAYLOAD_SKIP
//                    v   |
//                 OPTION_SKIP, TLS            any --> END
//
// Each phase has a step function, which takes complete input, queues answers, and tells whether the
// owner has an event to handle.
#include "protocol/session.h"

#include <assert.h>
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/meta_context.h"
#include "protocol/options.h"
#include "protocol/reply.h"
#include "protocol/request.h"
#include "protocol/state.h"
#include "protocol/wire.h"

// A payload of which at least INPUT_DIRECT_MIN bytes are missing is received straight into its
// buffer. Only INPUT_BEHIND_PAYLOAD bytes behind it go to the input buffer: they hold the next
// request's header, but little of its payload, which would have to be copied. A smaller payload is
// received in bulk with its neighbours.
#define INPUT_DIRECT_MIN (32u << 10)
#define INPUT_BEHIND_PAYLOAD 512u

static bool queue_greeting(struct session *s)
{
    struct nbd_greeting greeting = {
        .magic = htobe64(NBD_MAGIC),
        .option_magic = htobe64(NBD_IHAVEOPT),
        .flags = htobe16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
    };
    uint8_t *out = output_carve(&s->output, sizeof(greeting), 1);
    if (out == NULL)
        return false;
    memcpy(out, &greeting, sizeof(greeting));
    output_copied(&s->output, out, sizeof(greeting));
    return true;
}

struct session *session_new(const struct session_host *host)
{
    struct session *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return NULL;
    s->host = host;
    s->phase = PHASE_CLIENT_FLAGS;
    s->reason = "";
    if (!input_init(&s->input))
        goto free_session;
    if (!output_init(&s->output))
        goto free_input;
    if (!queue_greeting(s))
        goto free_output;
    return s;

free_output:
    output_free(&s->output);
free_input:
    input_free(&s->input);
free_session:
    free(s);
    return NULL;
}

void session_free(struct session *s)
{
    if (s == NULL)
        return;
    output_free(&s->output);
    input_free(&s->input);
    free(s);
}

// ---- Input --------------------------------------------------------------------------------------

int session_input(struct session *s, struct iovec iov[2])
{
    if (s->phase == PHASE_END || s->phase == PHASE_TLS || s->phase == PHASE_PAYLOAD_WANTED ||
        s->output.failed || session_output_full(s))
        return 0;
    int n = 0;
    bool direct = false;
    if (s->phase == PHASE_PAYLOAD && s->payload_left > 0) {
        iov[n].iov_base = s->payload;
        iov[n].iov_len = s->payload_left;
        direct = s->payload_left >= INPUT_DIRECT_MIN;
        n++;
    }
    uint8_t *space;
    size_t room = input_space(&s->input, &space);
    if (direct && room > INPUT_BEHIND_PAYLOAD)
        room = INPUT_BEHIND_PAYLOAD;
    if (room > 0) {
        iov[n].iov_base = space;
        iov[n].iov_len = room;
        n++;
    }
    return n;
}

void session_received(struct session *s, size_t bytes)
{
    if (s->phase == PHASE_PAYLOAD) {
        size_t n = bytes < s->payload_left ? bytes : (size_t)s->payload_left;
        s->payload += n;
        s->payload_left -= n;
        bytes -= n;
    }
    input_received(&s->input, bytes);
}

void session_payload(struct session *s, void *buffer)
{
    assert(s->phase == PHASE_PAYLOAD_WANTED);
    if (buffer == NULL) {
        s->error = NBD_ENOMEM;
        s->refusal = NULL;
        s->skip = s->request.length;
        s->phase = PHASE_PAYLOAD_SKIP;
        return;
    }
    size_t n = input_length(&s->input);
    if (n > s->request.length)
        n = (size_t)s->request.length;
    memcpy(buffer, input_data(&s->input), n);
    input_consume(&s->input, n);
    s->request.payload = buffer;
    s->payload = (uint8_t *)buffer + n;
    s->payload_left = s->request.length - n;
    s->phase = PHASE_PAYLOAD;
}

// ---- Steps --------------------------------------------------------------------------------------

// "Handshake flags", "Client flags".
static enum step take_client_flags(struct session *s)
{
    uint32_t flags;
    if (input_length(&s->input) < sizeof(flags))
        return STEP_MORE;
    memcpy(&flags, input_data(&s->input), sizeof(flags));
    flags = be32toh(flags);
    input_consume(&s->input, sizeof(flags));
    if ((flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) != 0)
        return session_end(s, SESSION_BAD, "client flags that were not offered");
    s->fixed_newstyle = (flags & NBD_FLAG_FIXED_NEWSTYLE) != 0;
    s->no_zeroes = (flags & NBD_FLAG_NO_ZEROES) != 0;
    s->phase = PHASE_OPTION;
    return STEP_AGAIN;
}

// Throws waiting bytes away. Returns true when the last one has come.
static bool skipped(struct session *s)
{
    size_t n = input_length(&s->input);
    if (n > s->skip)
        n = (size_t)s->skip;
    input_consume(&s->input, n);
    s->skip -= n;
    return s->skip == 0;
}

static enum step take_payload(struct session *s, struct session_request *request,
                              enum session_event *event)
{
    if (s->payload_left > 0)
        return STEP_MORE;
    *request = s->request;
    s->phase = PHASE_REQUEST;
    *event = SESSION_REQUEST;
    return STEP_EVENT;
}

static enum step session_take(struct session *s, struct session_request *request,
                              enum session_event *event)
{
    switch (s->phase) {
    case PHASE_CLIENT_FLAGS:
        return take_client_flags(s);
    case PHASE_OPTION:
        return option_take(s, event);
    case PHASE_OPTION_SKIP:
        return skipped(s) ? option_skipped(s) : STEP_MORE;
    case PHASE_REQUEST:
        return request_take(s, request, event);
    case PHASE_TLS:
    case PHASE_PAYLOAD_WANTED:
        return STEP_MORE; // the owner has to act first
    case PHASE_PAYLOAD:
        return take_payload(s, request, event);
    case PHASE_PAYLOAD_SKIP:
        if (!skipped(s))
            return STEP_MORE;
        session_reply(s, &s->request, s->error, s->refusal);
        s->phase = PHASE_REQUEST;
        return STEP_AGAIN;
    case PHASE_END:
        *event = s->end;
        return STEP_EVENT;
    }
    return STEP_MORE;
}

enum session_event session_next(struct session *s, struct session_request *request)
{
    for (;;) {
        if (s->output.failed && s->phase != PHASE_END)
            (void)session_end(s, SESSION_BAD, "out of memory");
        if (session_output_full(s) && s->phase != PHASE_END)
            return SESSION_MORE;
        enum session_event event;
        switch (session_take(s, request, &event)) {
        case STEP_AGAIN:
            break;
        case STEP_MORE:
            return SESSION_MORE;
        case STEP_EVENT:
            return event;
        }
    }
}

// ---- What was negotiated ------------------------------------------------------------------------

void session_tls_started(struct session *s)
{
    assert(s->phase == PHASE_TLS && s->output.bytes == 0 && input_length(&s->input) == 0);
    // "NBD_OPT_STARTTLS": state that an eavesdropper could have influenced is dropped. The client
    // flags stay, because the client does not send them again.
    s->mode = REPLY_SIMPLE;
    meta_context_forget(s);
    s->tls = true;
    s->phase = PHASE_OPTION;
}

bool session_in_transmission(const struct session *s)
{
    return s->chosen != NULL && s->phase != PHASE_END;
}

const struct session_export *session_chosen(const struct session *s)
{
    return s->chosen;
}

bool session_structured(const struct session *s)
{
    return s->mode != REPLY_SIMPLE;
}

bool session_extended(const struct session *s)
{
    return s->mode == REPLY_EXTENDED;
}

bool session_tls(const struct session *s)
{
    return s->tls;
}

unsigned session_contexts(const struct session *s)
{
    return s->contexts;
}

const char *session_reason(const struct session *s)
{
    return s->reason;
}

const char *session_obstacle(const struct session *s, const char **name)
{
    *name = s->obstacle_name;
    return s->obstacle;
}

bool session_failed(const struct session *s)
{
    return s->output.failed;
}

// ---- Output -------------------------------------------------------------------------------------

size_t session_output_bytes(const struct session *s)
{
    return s->output.failed ? 0 : s->output.bytes;
}

int session_output(struct session *s, struct iovec *iov, int max)
{
    return output_iovecs(&s->output, iov, max);
}

bool session_settle(struct session *s)
{
    return output_settle(&s->output);
}

void session_sent(struct session *s, size_t bytes)
{
    output_sent(&s->output, bytes);
}
