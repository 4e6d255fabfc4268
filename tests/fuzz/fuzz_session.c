// SPDX-License-Identifier: Apache-2.0
// fuzz_session.c: feeds a client's bytes to a session whose owner answers everything. LLVM
// libFuzzer calls LLVMFuzzerTestOneInput(); replay.c does so for a corpus.
//
// The first byte of an input selects the owner's behaviour (FUZZ_*); the other bytes are the
// client's. Each input is played twice, at once and in pieces: the answers must be equal.
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/session.h"
#include "protocol/wire.h"

#define FUZZ_TLS 3u // enum session_tls; 3 is off, too
#define FUZZ_SHUTTING_DOWN (1u << 2)
#define FUZZ_ERRORS (1u << 3)    // every request fails
#define FUZZ_NO_MEMORY (1u << 4) // no buffers for payloads
#define FUZZ_HOLES (1u << 5)     // reads tell holes

// Payloads above this are refused as if there were no memory, and longer reads fail: the fuzzer
// searches states, not megabytes.
#define FUZZ_PAYLOAD_MAX (256u << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Unlike assert(), active in every build.
static void must(bool condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "fuzz_session: %s\n", what);
    abort();
}

// ---- Exports ------------------------------------------------------------------------------------

static const struct session_export exports[] = {
    {.name = "disk",
     .description = "a disk",
     .size = 1 << 20,
     .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
              NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO |
              NBD_FLAG_CAN_MULTI_CONN,
     .block_min = 1,
     .block_preferred = 4096,
     .block_max = SESSION_PAYLOAD_MAX,
     .contexts = SESSION_CONTEXT_ALLOCATION_DEPTH},
    {.name = "ro",
     .size = 1ull << 60,
     .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY,
     .block_min = 1,
     .block_preferred = 65536,
     .block_max = SESSION_PAYLOAD_MAX},
};

static size_t export_count(void *context)
{
    (void)context;
    return sizeof(exports) / sizeof(exports[0]);
}

static const struct session_export *export_at(void *context, size_t index)
{
    (void)context;
    return &exports[index];
}

// ---- The owner ----------------------------------------------------------------------------------

struct player {
    struct session *session;
    uint8_t behaviour; // FUZZ_*
    uint8_t *payload;  // of the WRITE being received
    size_t payload_length;
    bool starttls;
    unsigned live; // replies with payload, not released
    uint8_t *out;
    size_t out_length;
    size_t out_capacity;
};

struct answer {
    struct session_payload_ref ref; // first: release gets its address
    struct player *player;
    uint8_t data[];
};

static void release(struct session_payload_ref *ref)
{
    struct answer *answer = (struct answer *)ref;
    answer->player->live--;
    free(answer);
}

static void answer_read(struct player *p, const struct session_request *request)
{
    if (request->length > FUZZ_PAYLOAD_MAX) {
        session_reply(p->session, request, EIO, NULL);
        return;
    }
    struct answer *answer = malloc(sizeof(*answer) + request->length);
    must(answer != NULL, "out of memory");
    answer->ref = (struct session_payload_ref){.release = release};
    answer->player = p;
    memset(answer->data, (int)request->offset, request->length);
    p->live++;
    struct session_read_part parts[] = {
        {.length = request->length / 2, .hole = true},
        {.length = request->length - request->length / 2},
    };
    bool holes = (p->behaviour & FUZZ_HOLES) != 0 && request->length > 1 &&
                 session_read_holes(p->session, request);
    session_reply_read(p->session, request, answer->data, holes ? parts : NULL, holes ? 2 : 0,
                       &answer->ref);
}

static void answer_request(struct player *p, const struct session_request *request)
{
    static const struct session_status_extent extents[] = {
        {.length = 512, .flags = NBD_STATE_HOLE},
        {.length = 512, .flags = NBD_STATE_HOLE},
        {.length = 1ull << 33, .depth = 1},
        {.length = UINT64_MAX, .flags = NBD_STATE_ZERO},
    };
    const struct session_export *export = session_chosen(p->session);
    must(export != NULL, "a request before an export was chosen");
    must(request->length <= export->size && request->offset <= export->size - request->length,
         "a request beyond the end");
    must((request->length == 0) == (request->type == NBD_CMD_FLUSH), "a length of 0");
    if (request->type == NBD_CMD_WRITE) {
        must(request->payload == p->payload && request->length == p->payload_length,
             "another payload than was given");
        free(p->payload);
        p->payload = NULL;
    }
    if ((p->behaviour & FUZZ_ERRORS) != 0)
        session_reply(p->session, request, (int)(request->cookie % 120) + 1, NULL);
    else if (request->type == NBD_CMD_READ)
        answer_read(p, request);
    else if (request->type == NBD_CMD_BLOCK_STATUS)
        session_reply_status(p->session, request, extents, 4);
    else
        session_reply(p->session, request, 0, NULL);
}

static void give_payload(struct player *p, const struct session_request *request)
{
    must(p->payload == NULL, "two payloads at once");
    if ((p->behaviour & FUZZ_NO_MEMORY) == 0 && request->length <= FUZZ_PAYLOAD_MAX) {
        p->payload = malloc(request->length);
        must(p->payload != NULL, "out of memory");
        p->payload_length = request->length;
    }
    session_payload(p->session, p->payload);
}

static size_t send_some(struct player *p, size_t most);

static void start_tls(struct player *p)
{
    must(!session_tls(p->session), "TLS inside of TLS");
    while (send_some(p, SIZE_MAX) > 0)
        ;
    p->starttls = true;
    session_tls_started(p->session);
}

// Returns true while the conversation goes on.
static bool take_events(struct player *p)
{
    struct session_request request;
    for (;;) {
        switch (session_next(p->session, &request)) {
        case SESSION_MORE:
            return true;
        case SESSION_STARTTLS:
            start_tls(p);
            break;
        case SESSION_NEGOTIATED:
            must(session_chosen(p->session) != NULL, "negotiated without an export");
            break;
        case SESSION_PAYLOAD:
            give_payload(p, &request);
            break;
        case SESSION_REQUEST:
            answer_request(p, &request);
            break;
        case SESSION_DISCONNECT:
        case SESSION_CLOSE:
        case SESSION_BAD:
            return false;
        }
    }
}

static size_t receive_some(struct player *p, const uint8_t *data, size_t length)
{
    struct iovec iov[2];
    size_t given = 0;
    int n = session_input(p->session, iov);
    for (int i = 0; i < n && given < length; i++) {
        size_t now = iov[i].iov_len < length - given ? iov[i].iov_len : length - given;
        memcpy(iov[i].iov_base, data + given, now);
        given += now;
    }
    session_received(p->session, given);
    return given;
}

static size_t send_some(struct player *p, size_t most)
{
    struct iovec iov[4];
    size_t sent = 0;
    int n = session_output(p->session, iov, 4);
    for (int i = 0; i < n && sent < most; i++) {
        size_t now = iov[i].iov_len < most - sent ? iov[i].iov_len : most - sent;
        if (p->out_capacity - p->out_length < now) {
            p->out_capacity = (p->out_capacity + now) * 2;
            p->out = realloc(p->out, p->out_capacity);
            must(p->out != NULL, "out of memory");
        }
        memcpy(p->out + p->out_length, iov[i].iov_base, now);
        p->out_length += now;
        sent += now;
    }
    session_sent(p->session, sent);
    return sent;
}

static void play(struct player *p, const uint8_t *data, size_t size, size_t sip)
{
    struct session_host host = {
        .export_count = export_count,
        .export_at = export_at,
        .shutting_down = (p->behaviour & FUZZ_SHUTTING_DOWN) != 0,
        .tls = (p->behaviour & FUZZ_TLS) == 3 ? SESSION_TLS_OFF : p->behaviour & FUZZ_TLS,
    };
    p->session = session_new(&host);
    must(p->session != NULL, "out of memory");
    bool on = take_events(p);
    while (on && size > 0) {
        size_t given = receive_some(p, data, size < sip ? size : sip);
        data += given;
        size -= given;
        on = take_events(p);
        size_t sent = send_some(p, sip);
        must(given > 0 || sent > 0, "stuck");
    }
    do
        (void)take_events(p);
    while (send_some(p, SIZE_MAX) > 0);
    session_free(p->session);
    must(p->live == 0, "a payload that was not released");
    free(p->payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct player at_once = {.behaviour = data[0]};
    struct player in_pieces = {.behaviour = data[0]};
    play(&at_once, data + 1, size - 1, SIZE_MAX);
    play(&in_pieces, data + 1, size - 1, 1 + size % 37);
    must(at_once.starttls || in_pieces.starttls ||
             (at_once.out_length == in_pieces.out_length &&
              memcmp(at_once.out, in_pieces.out, at_once.out_length) == 0),
         "other answers in pieces");
    free(at_once.out);
    free(in_pieces.out);
    return 0;
}
