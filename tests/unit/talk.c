// SPDX-License-Identifier: Apache-2.0
// talk.c: a conversation of an NBD client with a session, as bytes said and bytes heard.
#include "tests/unit/talk.h"

#include <endian.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "protocol/wire.h"

// ---- Bytes --------------------------------------------------------------------------------------

static uint8_t *room(struct bytes *b, size_t length)
{
    if (b->capacity - b->length < length) {
        b->capacity = (b->capacity + length) * 2;
        b->data = realloc(b->data, b->capacity);
        assert_non_null(b->data);
    }
    uint8_t *at = b->data + b->length;
    b->length += length;
    return at;
}

void put_bytes(struct bytes *b, const void *data, size_t length)
{
    if (length > 0)
        memcpy(room(b, length), data, length);
}

void put_text(struct bytes *b, const char *text)
{
    put_bytes(b, text, strlen(text));
}

void put_zeros(struct bytes *b, size_t length)
{
    if (length > 0)
        memset(room(b, length), 0, length);
}

void put_u16(struct bytes *b, uint16_t value)
{
    value = htobe16(value);
    put_bytes(b, &value, sizeof(value));
}

void put_u32(struct bytes *b, uint32_t value)
{
    value = htobe32(value);
    put_bytes(b, &value, sizeof(value));
}

void put_u64(struct bytes *b, uint64_t value)
{
    value = htobe64(value);
    put_bytes(b, &value, sizeof(value));
}

static void fill_pattern(uint8_t *data, uint64_t offset, size_t length)
{
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)((offset + i) * 7 + ((offset + i) >> 9));
}

void put_pattern(struct bytes *b, uint64_t offset, size_t length)
{
    if (length > 0)
        fill_pattern(room(b, length), offset, length);
}

// ---- Exports ------------------------------------------------------------------------------------

char talk_long_name[SESSION_STRING_MAX + 1];

#define BLOCKS .block_min = 1, .block_preferred = 4096, .block_max = SESSION_PAYLOAD_MAX

const struct session_export talk_exports[EXPORT_COUNT] = {
    [EXPORT_DISK] = {.name = "disk",
                     .contexts = SESSION_CONTEXT_ALLOCATION_DEPTH,
                     .description = "a disk",
                     .size = 1 << 20,
                     .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                              NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                              NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO |
                              NBD_FLAG_CAN_MULTI_CONN,
                     BLOCKS},
    [EXPORT_READ_ONLY] = {.name = "read-only",
                          .description = "another",
                          .size = 3001,
                          .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH |
                                   NBD_FLAG_SEND_FUA,
                          BLOCKS},
    [EXPORT_PLAIN] = {.name = "plain", .size = 1ull << 40, .flags = NBD_FLAG_HAS_FLAGS, BLOCKS},
    [EXPORT_LONG] = {.name = talk_long_name,
                     .size = 512,
                     .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY,
                     BLOCKS},
};

static size_t export_count(void *context)
{
    (void)context;
    return EXPORT_COUNT;
}

static const struct session_export *export_at(void *context, size_t index)
{
    (void)context;
    assert_true(index < EXPORT_COUNT);
    return &talk_exports[index];
}

// ---- The owner ----------------------------------------------------------------------------------

// A request that the owner holds, with the data of its answer.
struct held {
    struct session_payload_ref ref; // first: release gets its address
    struct session_request request;
    struct held *next;
    unsigned *live;
    uint8_t data[];
};

struct owner {
    struct session *session;
    struct bytes *out;
    const struct answers *answers;
    struct bytes *requests;
    struct held *waiting; // the last one first
    unsigned live;        // payloads of replies not released yet
    uint8_t *payload;     // of the WRITE being received
};

static void release(struct session_payload_ref *ref)
{
    struct held *held = (struct held *)ref;
    (*held->live)--;
    free(held);
}

static void answer(struct owner *o, struct held *held)
{
    struct session *s = o->session;
    const struct answers *a = o->answers;
    const struct session_request *request = &held->request;
    if (a->error == 0 && request->type == NBD_CMD_READ) {
        bool parts = a->parts != NULL && session_read_holes(s, request);
        o->live++;
        session_reply_read(s, request, held->data, parts ? a->parts : NULL,
                           parts ? a->part_count : 0, &held->ref);
        return;
    }
    if (a->error == 0 && request->type == NBD_CMD_BLOCK_STATUS)
        session_reply_status(s, request, a->extents, a->extent_count);
    else
        session_reply(s, request, a->error, a->message);
    free(held);
}

static void take_request(struct owner *o, const struct session_request *request)
{
    char line[100];
    snprintf(line, sizeof(line), "%u %u %llu %llu\n", request->type, request->flags,
             (unsigned long long)request->offset, (unsigned long long)request->length);
    put_text(o->requests, line);
    if (request->type == NBD_CMD_WRITE) {
        struct bytes expected = {0};
        put_pattern(&expected, request->offset, request->length);
        assert_ptr_equal(request->payload, o->payload);
        if (!o->answers->any_payload)
            assert_memory_equal(request->payload, expected.data, request->length);
        free(expected.data);
        free(o->payload);
        o->payload = NULL;
    }
    size_t length = request->type == NBD_CMD_READ ? request->length : 0;
    struct held *held = malloc(sizeof(*held) + length);
    assert_non_null(held);
    held->ref = (struct session_payload_ref){.release = release};
    held->request = *request;
    held->live = &o->live;
    fill_pattern(held->data, request->offset, length);
    if (o->answers->reverse) {
        held->next = o->waiting;
        o->waiting = held;
    } else {
        answer(o, held);
    }
}

static bool send_some(struct session *s, size_t sip, struct bytes *out);

// Does the owner's part of the handshake, which always succeeds here.
static void start_tls(struct owner *o)
{
    struct session_request request;
    struct iovec iov[2];
    assert_int_equal(session_input(o->session, iov), 0);
    assert_int_equal(session_next(o->session, &request), SESSION_MORE);
    while (send_some(o->session, SIZE_MAX, o->out))
        ;
    assert_false(session_tls(o->session));
    session_tls_started(o->session);
    assert_true(session_tls(o->session));
    assert_false(session_structured(o->session));
}

static enum session_event take_events(struct owner *o, enum session_event last)
{
    struct session_request request;
    for (;;) {
        enum session_event event = session_next(o->session, &request);
        switch (event) {
        case SESSION_MORE:
            return last;
        case SESSION_PAYLOAD:
            assert_null(o->payload);
            if (!o->answers->no_memory) {
                o->payload = malloc(request.length);
                assert_non_null(o->payload);
            }
            session_payload(o->session, o->payload);
            break;
        case SESSION_REQUEST:
            take_request(o, &request);
            break;
        case SESSION_STARTTLS:
            start_tls(o);
            break;
        case SESSION_NEGOTIATED:
            assert_true(session_in_transmission(o->session));
            assert_non_null(session_chosen(o->session));
            break;
        case SESSION_DISCONNECT:
        case SESSION_CLOSE:
        case SESSION_BAD:
            assert_true(strlen(session_reason(o->session)) > 0);
            return event;
        }
        last = event;
    }
}

// Sends at most sip bytes. Returns false when nothing is left.
static bool send_some(struct session *s, size_t sip, struct bytes *out)
{
    struct iovec iov[8];
    size_t sent = 0;
    int n = session_output(s, iov, 8);
    for (int i = 0; i < n && sent < sip; i++) {
        size_t length = iov[i].iov_len < sip - sent ? iov[i].iov_len : sip - sent;
        assert_true(length > 0);
        put_bytes(out, iov[i].iov_base, length);
        sent += length;
    }
    size_t before = session_output_bytes(s);
    session_sent(s, sent);
    assert_int_equal(session_output_bytes(s), before - sent);
    return sent > 0;
}

// Gives the session at most length bytes. Returns how many it had room for.
static size_t receive_some(struct session *s, const uint8_t *data, size_t length)
{
    struct iovec iov[2];
    size_t given = 0;
    int n = session_input(s, iov);
    for (int i = 0; i < n && given < length; i++) {
        size_t now = iov[i].iov_len < length - given ? iov[i].iov_len : length - given;
        memcpy(iov[i].iov_base, data + given, now);
        given += now;
    }
    session_received(s, given);
    return given;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

enum session_event talk_play(struct session *s, const struct answers *answers, const uint8_t *data,
                             size_t length, struct pace pace, struct bytes *out,
                             struct bytes *requests)
{
    struct owner o = {.session = s, .out = out, .answers = answers, .requests = requests};
    enum session_event last = take_events(&o, SESSION_MORE);
    size_t done = 0;
    while (done < length && last != SESSION_BAD && last != SESSION_CLOSE &&
           last != SESSION_DISCONNECT) {
        size_t piece = least(pace.sip, length - done);
        if (done < pace.cut)
            piece = least(piece, pace.cut - done);
        if (done < pace.tls_from)
            piece = least(piece, pace.tls_from - done);
        size_t given = receive_some(s, data + done, piece);
        done += given;
        last = take_events(&o, last);
        bool progress = send_some(s, pace.sip, out);
        assert_true(given > 0 || progress);
    }
    while (o.waiting != NULL) {
        struct held *held = o.waiting;
        o.waiting = held->next;
        answer(&o, held);
    }
    do
        last = take_events(&o, last);
    while (send_some(s, pace.sip, out));
    assert_int_equal(o.live, 0);
    free(o.payload);
    return last;
}

// ---- Checking -----------------------------------------------------------------------------------

void talk_init(struct talk *t)
{
    memset(talk_long_name, 'n', SESSION_STRING_MAX);
    *t = (struct talk){.host = {.export_count = export_count, .export_at = export_at}};
}

static void assert_bytes(const struct bytes *got, const struct bytes *expected)
{
    size_t common = got->length < expected->length ? got->length : expected->length;
    size_t same = 0;
    while (same < common && got->data[same] == expected->data[same])
        same++;
    if (got->length != expected->length || same < common)
        fail_msg("%zu bytes where %zu are expected, the first %zu are the same", got->length,
                 expected->length, same);
}

static enum session_event play(const struct talk *t, size_t length, struct pace pace,
                               struct bytes *out, struct bytes *requests)
{
    struct session *s = session_new(&t->host);
    assert_non_null(s);
    pace.tls_from = t->tls_from;
    enum session_event end = talk_play(s, &t->answers, t->said.data, length, pace, out, requests);
    session_free(s);
    return end;
}

static void check_whole(const struct talk *t, struct pace pace)
{
    struct bytes out = {0};
    struct bytes requests = {0};
    enum session_event end = play(t, t->said.length, pace, &out, &requests);
    assert_bytes(&out, &t->heard);
    if (t->requests.length > 0)
        assert_bytes(&requests, &t->requests);
    assert_int_equal(end, t->end);
    free(out.data);
    free(requests.data);
}

static void check_beginning(const struct talk *t, size_t length)
{
    struct bytes out = {0};
    struct bytes requests = {0};
    play(t, length, (struct pace){.sip = SIZE_MAX}, &out, &requests);
    assert_true(out.length <= t->heard.length);
    assert_memory_equal(out.data, t->heard.data, out.length);
    free(out.data);
    free(requests.data);
}

static void talk_free(struct talk *t)
{
    free(t->said.data);
    free(t->heard.data);
    free(t->requests.data);
}

void talk_check(struct talk *t)
{
    check_whole(t, (struct pace){.sip = SIZE_MAX});
    check_whole(t, (struct pace){.sip = 1});
    for (size_t cut = 0; cut < t->said.length; cut++) {
        check_whole(t, (struct pace){.cut = cut, .sip = SIZE_MAX});
        // Held requests are answered when the client is done: earlier and in another order when it
        // was cut.
        if (!t->answers.reverse)
            check_beginning(t, cut);
    }
    talk_free(t);
}

void talk_check_once(struct talk *t, size_t sip)
{
    check_whole(t, (struct pace){.sip = sip});
    talk_free(t);
}

// ---- What clients say ---------------------------------------------------------------------------

void say_flags(struct talk *t, uint32_t flags)
{
    put_u32(&t->said, flags);
}

void say_option(struct talk *t, uint32_t option, const void *data, size_t length)
{
    put_u64(&t->said, NBD_IHAVEOPT);
    put_u32(&t->said, option);
    put_u32(&t->said, (uint32_t)length);
    put_bytes(&t->said, data, length);
}

void say_info(struct talk *t, uint32_t option, const char *name, const uint16_t *types,
              size_t count)
{
    struct bytes data = {0};
    put_u32(&data, (uint32_t)strlen(name));
    put_text(&data, name);
    put_u16(&data, (uint16_t)count);
    for (size_t i = 0; i < count; i++)
        put_u16(&data, types[i]);
    say_option(t, option, data.data, data.length);
    free(data.data);
}

void say_meta(struct talk *t, uint32_t option, const char *name, const char *const *queries)
{
    struct bytes data = {0};
    uint32_t count = 0;
    while (queries[count] != NULL)
        count++;
    put_u32(&data, (uint32_t)strlen(name));
    put_text(&data, name);
    put_u32(&data, count);
    for (uint32_t i = 0; i < count; i++) {
        put_u32(&data, (uint32_t)strlen(queries[i]));
        put_text(&data, queries[i]);
    }
    say_option(t, option, data.data, data.length);
    free(data.data);
}

void say_request(struct talk *t, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset,
                 uint32_t length)
{
    put_u32(&t->said, NBD_REQUEST_MAGIC);
    put_u16(&t->said, flags);
    put_u16(&t->said, type);
    put_u64(&t->said, cookie);
    put_u64(&t->said, offset);
    put_u32(&t->said, length);
}

void say_extended(struct talk *t, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset,
                  uint64_t length)
{
    put_u32(&t->said, NBD_EXTENDED_REQUEST_MAGIC);
    put_u16(&t->said, flags);
    put_u16(&t->said, type);
    put_u64(&t->said, cookie);
    put_u64(&t->said, offset);
    put_u64(&t->said, length);
}

// ---- What servers answer ------------------------------------------------------------------------

void hear_greeting(struct talk *t)
{
    put_text(&t->heard, "NBDMAGIC");
    put_text(&t->heard, "IHAVEOPT");
    put_u16(&t->heard, 3);
}

void hear_option(struct talk *t, uint32_t option, uint32_t type, const void *data, size_t length)
{
    put_u64(&t->heard, 0x0003e889045565a9);
    put_u32(&t->heard, option);
    put_u32(&t->heard, type);
    put_u32(&t->heard, (uint32_t)length);
    put_bytes(&t->heard, data, length);
}

void hear_error(struct talk *t, uint32_t option, uint32_t type, const char *message)
{
    hear_option(t, option, type, message, strlen(message));
}

void hear_ack(struct talk *t, uint32_t option)
{
    hear_option(t, option, 1, NULL, 0);
}

void hear_info(struct talk *t, uint32_t option, const struct session_export *export, uint16_t flags)
{
    struct bytes info = {0};
    put_u16(&info, 0);
    put_u64(&info, export->size);
    put_u16(&info, flags);
    hear_option(t, option, 3, info.data, info.length);
    info.length = 0;
    put_u16(&info, 3);
    put_u32(&info, 1);
    put_u32(&info, 4096);
    put_u32(&info, 32 << 20);
    hear_option(t, option, 3, info.data, info.length);
    free(info.data);
}

void hear_context(struct talk *t, uint32_t option, uint32_t id, const char *name)
{
    struct bytes data = {0};
    put_u32(&data, id);
    put_text(&data, name);
    hear_option(t, option, 4, data.data, data.length);
    free(data.data);
}

void hear_simple(struct talk *t, uint32_t error, uint64_t cookie)
{
    put_u32(&t->heard, 0x67446698);
    put_u32(&t->heard, error);
    put_u64(&t->heard, cookie);
}

void hear_chunk(struct talk *t, uint16_t flags, uint16_t type, uint64_t cookie, uint32_t length)
{
    put_u32(&t->heard, 0x668e33ef);
    put_u16(&t->heard, flags);
    put_u16(&t->heard, type);
    put_u64(&t->heard, cookie);
    put_u32(&t->heard, length);
}

void hear_error_chunk(struct talk *t, uint32_t error, uint64_t cookie, const char *message)
{
    hear_chunk(t, 1, 0x8001, cookie, (uint32_t)(6 + strlen(message)));
    put_u32(&t->heard, error);
    put_u16(&t->heard, (uint16_t)strlen(message));
    put_text(&t->heard, message);
}

void hear_extended(struct talk *t, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset,
                   uint64_t length)
{
    put_u32(&t->heard, 0x6e8a278c);
    put_u16(&t->heard, flags);
    put_u16(&t->heard, type);
    put_u64(&t->heard, cookie);
    put_u64(&t->heard, offset);
    put_u64(&t->heard, length);
}

void hear_extended_error(struct talk *t, uint32_t error, uint64_t cookie, uint64_t offset,
                         const char *message)
{
    hear_extended(t, 1, 0x8001, cookie, offset, 6 + strlen(message));
    put_u32(&t->heard, error);
    put_u16(&t->heard, (uint16_t)strlen(message));
    put_text(&t->heard, message);
}

void see_request(struct talk *t, uint16_t type, uint16_t flags, uint64_t offset, uint64_t length)
{
    char line[100];
    snprintf(line, sizeof(line), "%u %u %llu %llu\n", type, flags, (unsigned long long)offset,
             (unsigned long long)length);
    put_text(&t->requests, line);
}

// ---- Whole beginnings ---------------------------------------------------------------------------

void talk_hello(struct talk *t)
{
    hear_greeting(t);
    say_flags(t, 3);
}

void talk_structured(struct talk *t)
{
    say_option(t, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    hear_ack(t, NBD_OPT_STRUCTURED_REPLY);
}

void talk_extended(struct talk *t)
{
    say_option(t, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    hear_ack(t, NBD_OPT_EXTENDED_HEADERS);
}

void talk_starttls(struct talk *t)
{
    say_option(t, NBD_OPT_STARTTLS, NULL, 0);
    hear_ack(t, NBD_OPT_STARTTLS);
    t->tls_from = t->said.length;
    t->end = SESSION_STARTTLS;
}

void talk_contexts(struct talk *t, const char *name, bool depth)
{
    say_meta(t, NBD_OPT_SET_META_CONTEXT, name,
             depth ? (const char *const[]){"base:allocation", "qemu:allocation-depth", NULL}
                   : (const char *const[]){"base:allocation", NULL});
    hear_context(t, NBD_OPT_SET_META_CONTEXT, 1, "base:allocation");
    if (depth)
        hear_context(t, NBD_OPT_SET_META_CONTEXT, 2, "qemu:allocation-depth");
    hear_ack(t, NBD_OPT_SET_META_CONTEXT);
}

void talk_go(struct talk *t, const struct session_export *export, uint16_t flags)
{
    say_info(t, NBD_OPT_GO, export->name, NULL, 0);
    hear_info(t, NBD_OPT_GO, export, flags);
    hear_ack(t, NBD_OPT_GO);
    t->end = SESSION_NEGOTIATED;
}

void talk_transmission(struct talk *t, const struct session_export *export, bool structured)
{
    talk_hello(t);
    if (structured)
        talk_structured(t);
    talk_go(t, export, (uint16_t)(export->flags | (structured ? NBD_FLAG_SEND_DF : 0)));
}
