// SPDX-License-Identifier: Apache-2.0
// test_session_random.c: the session on arbitrary input: cut short against an unreadable page, and
// mutated at random. The answers never depend on how the network cuts the input.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "protocol/state.h"
#include "protocol/wire.h"
#include "tests/unit/talk.h"

#define DISK (&talk_exports[EXPORT_DISK])

// Mutated conversations: less than a second of them under a sanitizer.
#define ROUNDS 4000

// ---- Conversations to begin with ----------------------------------------------------------------

static void say_transmission(struct talk *t)
{
    for (uint16_t type = 0; type < 9; type++) {
        if (type == NBD_CMD_DISC)
            continue;
        uint32_t length = type == NBD_CMD_FLUSH ? 0 : 700;
        say_request(t, 0, type, type, 512u * type, length);
        if (type == NBD_CMD_WRITE)
            put_pattern(&t->said, 512u * type, length);
    }
    say_request(t, 0, NBD_CMD_DISC, 9, 0, 0);
}

static void say_simple(struct talk *t)
{
    talk_transmission(t, DISK, false);
    say_transmission(t);
}

static void say_structured(struct talk *t)
{
    talk_hello(t);
    talk_structured(t);
    say_meta(t, NBD_OPT_LIST_META_CONTEXT, "disk", (const char *const[]){"base:", "x", NULL});
    say_meta(t, NBD_OPT_SET_META_CONTEXT, "disk", (const char *const[]){"base:allocation", NULL});
    say_info(t, NBD_OPT_INFO, "read-only", (uint16_t[]){0, 1, 2, 3}, 4);
    talk_go(t, DISK, 0);
    say_transmission(t);
}

static void say_extended_headers(struct talk *t)
{
    talk_hello(t);
    talk_extended(t);
    talk_contexts(t, "disk", true);
    talk_go(t, DISK, 0);
    for (uint16_t type = 0; type < 9; type++) {
        bool write = type == NBD_CMD_WRITE;
        if (type == NBD_CMD_DISC)
            continue;
        say_extended(t, write ? NBD_CMD_FLAG_PAYLOAD_LEN : 0, type, type, 512u * type,
                     type == NBD_CMD_FLUSH ? 0 : 700);
        if (write)
            put_pattern(&t->said, 512u * type, 700);
    }
    say_extended(t, NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_BLOCK_STATUS, 9, 0, 12);
    put_u64(&t->said, 700);
    put_u32(&t->said, 2);
    say_extended(t, 0, NBD_CMD_DISC, 10, 0, 0);
}

static void say_export_name(struct talk *t)
{
    hear_greeting(t);
    say_flags(t, 0);
    say_option(t, NBD_OPT_EXPORT_NAME, "disk", 4);
    say_transmission(t);
}

static void say_haggling(struct talk *t)
{
    talk_hello(t);
    for (uint32_t option = 2; option < 14; option++)
        say_option(t, option == 2 ? 99 : option, "\0\0\0\004disk\0\0\0\0", option);
    say_option(t, NBD_OPT_LIST, NULL, 0);
    say_option(t, NBD_OPT_ABORT, NULL, 0);
}

static void (*const beginnings[])(struct talk *t) = {
    say_simple, say_structured, say_extended_headers, say_export_name, say_haggling};
#define BEGINNING_COUNT (sizeof(beginnings) / sizeof(beginnings[0]))

static const struct session_read_part parts[] = {{.length = 300, .hole = true}, {.length = 400}};
static const struct session_status_extent extents[] = {
    {.length = 512}, {.length = 1024, .flags = 3}, {.length = 1ull << 33, .depth = 1}};

static void begin(struct talk *t, size_t which)
{
    talk_init(t);
    beginnings[which](t);
    t->answers = (struct answers){
        .any_payload = true,
        .extents = extents,
        .extent_count = 3,
    };
}

static void end(struct talk *t)
{
    free(t->said.data);
    free(t->heard.data);
    free(t->requests.data);
}

// ---- Against an unreadable page -----------------------------------------------------------------

// Plays the first length bytes of a talk out of an input buffer that they fill to its last byte,
// which is the last one of its page. The page behind it cannot be read.
static void play_against_guard(const struct talk *t, size_t length)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = (length + page - 1) / page * page;
    uint8_t *map =
        mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(mprotect(map + size, page, PROT_NONE), 0);

    struct session *s = session_new(&t->host);
    assert_non_null(s);
    struct input own = s->input;
    s->input = (struct input){.buffer = map + size - length, .size = length};
    struct bytes out = {0};
    struct bytes requests = {0};
    talk_play(s, &t->answers, t->said.data, length, (struct pace){.sip = SIZE_MAX}, &out,
              &requests);
    assert_true(out.length >= sizeof(struct nbd_greeting));
    s->input = own;
    session_free(s);
    free(out.data);
    free(requests.data);
    munmap(map, size + page);
}

static void nothing_is_read_behind_the_input(void **state)
{
    (void)state;
    for (size_t which = 0; which < BEGINNING_COUNT; which++) {
        struct talk t;
        begin(&t, which);
        t.answers.parts = parts;
        t.answers.part_count = 2;
        for (size_t length = 1; length <= t.said.length; length++)
            play_against_guard(&t, length);
        end(&t);
    }
}

// ---- Mutations ----------------------------------------------------------------------------------

static uint64_t random_state;

// Numbers below limit, from xorshift64*.
static uint32_t any(uint32_t limit)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1dull) >> 32) % limit;
}

static void mutate(struct bytes *b)
{
    static const uint8_t telling[] = {0, 1, 2, 4, 7, 8, 0x7f, 0x80, 0xff};
    size_t at = any((uint32_t)b->length);
    size_t n = any(30) + 1;
    if (n > b->length - at)
        n = b->length - at;
    switch (any(4)) {
    case 0:
        b->data[at] ^= (uint8_t)(1u << any(8));
        break;
    case 1:
        b->data[at] = telling[any(sizeof(telling))];
        break;
    case 2: // a piece is lost
        memmove(b->data + at, b->data + at + n, b->length - at - n);
        b->length -= n;
        break;
    default: // a piece comes twice
        put_zeros(b, n);
        memmove(b->data + at + n, b->data + at, b->length - at - n);
        break;
    }
}

static void play_mutated(const struct talk *t, struct pace pace, struct bytes *out,
                         enum session_event *last)
{
    struct bytes requests = {0};
    struct session *s = session_new(&t->host);
    assert_non_null(s);
    *last = talk_play(s, &t->answers, t->said.data, t->said.length, pace, out, &requests);
    session_free(s);
    free(requests.data);
}

static void mutations_are_answered_alike_however_they_come(void **state)
{
    (void)state;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        random_state = round * 0x9e3779b97f4a7c15ull;
        struct talk t;
        begin(&t, any(BEGINNING_COUNT));
        for (uint32_t i = any(6); i > 0 && t.said.length > 0; i--)
            mutate(&t.said);
        struct bytes at_once = {0};
        struct bytes in_pieces = {0};
        enum session_event last[2];
        play_mutated(&t, (struct pace){.sip = SIZE_MAX}, &at_once, &last[0]);
        struct pace pace = {.cut = any(2000), .sip = any(64) + 1};
        play_mutated(&t, pace, &in_pieces, &last[1]);
        if (at_once.length != in_pieces.length ||
            memcmp(at_once.data, in_pieces.data, at_once.length) != 0 || last[0] != last[1])
            fail_msg("round %llu: other answers in pieces", (unsigned long long)round);
        free(at_once.data);
        free(in_pieces.data);
        end(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_read_behind_the_input),
        cmocka_unit_test(mutations_are_answered_alike_however_they_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
