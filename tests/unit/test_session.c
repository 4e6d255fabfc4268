// SPDX-License-Identifier: Apache-2.0
// test_session.c: the session before the transmission phase. A test of a row of
// docs/protocol-checklist.md has the number of the row.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "protocol/options.h"
#include "protocol/session.h"
#include "protocol/wire.h"
#include "tests/unit/talk.h"

#define DISK (&talk_exports[EXPORT_DISK])
#define FLAGS_DISK 0x0d6d // HAS_FLAGS FLUSH FUA TRIM WRITE_ZEROES MULTI_CONN CACHE FAST_ZERO

static const char lengths_differ[] = "lengths do not match the option's";
static const char no_such_export[] = "no export of this name";

// ---- Handshake ----------------------------------------------------------------------------------

static void row_01_baseline(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_info(&t, 6, "disk", (uint16_t[]){0}, 1);
    hear_info(&t, 6, DISK, FLAGS_DISK);
    hear_ack(&t, 6);
    talk_go(&t, DISK, FLAGS_DISK);
    say_request(&t, 0, NBD_CMD_READ, 7, 512, 3);
    hear_simple(&t, 0, 7);
    put_pattern(&t.heard, 512, 3);
    say_request(&t, 0, NBD_CMD_WRITE, 8, 5, 2);
    put_pattern(&t.said, 5, 2);
    hear_simple(&t, 0, 8);
    say_request(&t, 0, NBD_CMD_DISC, 9, 0, 0);
    see_request(&t, NBD_CMD_READ, 0, 512, 3);
    see_request(&t, NBD_CMD_WRITE, 0, 5, 2);
    t.end = SESSION_DISCONNECT;
    talk_check(&t);
}

static void row_02_unknown_option(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, 0x7fffffff, "any old data", 12);
    hear_error(&t, 0x7fffffff, NBD_REP_ERR_UNSUP, "unknown option");
    say_option(&t, 0, NULL, 0);
    hear_error(&t, 0, NBD_REP_ERR_UNSUP, "unknown option");
    talk_go(&t, DISK, FLAGS_DISK);
    talk_check(&t);
}

static void row_02_unknown_option_larger_than_any_buffer(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    struct bytes data = {0};
    put_zeros(&data, 3 << 20);
    say_option(&t, 99, data.data, data.length);
    hear_error(&t, 99, NBD_REP_ERR_UNSUP, "unknown option");
    say_option(&t, NBD_OPT_GO, data.data, OPTION_DATA_MAX + 1);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_TOO_BIG, "the option has too much data");
    // The largest one that is looked at: its name is too long.
    say_option(&t, NBD_OPT_GO, "\377\377\377\377", 4);
    t.said.length -= 8; // back to the option's length
    put_u32(&t.said, OPTION_DATA_MAX);
    put_u32(&t.said, 0xffffffff);
    put_zeros(&t.said, OPTION_DATA_MAX - 4);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_INVALID, lengths_differ);
    talk_go(&t, DISK, FLAGS_DISK);
    free(data.data);
    talk_check_once(&t, 1000);
}

static void row_03_export_name_as_well_as_go(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_EXPORT_NAME, "disk", 4);
    put_u64(&t.heard, 1 << 20);
    put_u16(&t.heard, FLAGS_DISK);
    say_request(&t, 0, NBD_CMD_FLUSH, 1, 0, 0);
    hear_simple(&t, 0, 1);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_04_names_of_4096_bytes(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_info(&t, NBD_OPT_GO, talk_long_name, NULL, 0);
    hear_info(&t, NBD_OPT_GO, &talk_exports[EXPORT_LONG], 3);
    hear_ack(&t, NBD_OPT_GO);
    t.end = SESSION_NEGOTIATED;
    talk_check_once(&t, 100);

    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_EXPORT_NAME, talk_long_name, 4096);
    put_u64(&t.heard, 512);
    put_u16(&t.heard, 3);
    t.end = SESSION_NEGOTIATED;
    talk_check_once(&t, 100);
}

static void row_04_longer_names_are_refused(void **state)
{
    (void)state;
    char name[SESSION_STRING_MAX + 2];
    memset(name, 'n', sizeof(name));
    name[SESSION_STRING_MAX + 1] = '\0';
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_info(&t, NBD_OPT_INFO, name, NULL, 0);
    hear_error(&t, NBD_OPT_INFO, NBD_REP_ERR_INVALID, lengths_differ);
    say_option(&t, NBD_OPT_EXPORT_NAME, name, strlen(name));
    t.end = SESSION_CLOSE;
    talk_check_once(&t, 100);
}

static void row_06_greeting(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    put_u64(&t.heard, 0x4e42444d41474943);
    put_u64(&t.heard, 0x49484156454F5054);
    put_u16(&t.heard, 3);
    talk_check(&t);
}

static void row_07_client_flags_not_offered(void **state)
{
    (void)state;
    for (unsigned bit = 2; bit < 32; bit++) {
        struct talk t;
        talk_init(&t);
        hear_greeting(&t);
        say_flags(&t, 3 | 1u << bit);
        t.end = SESSION_BAD;
        talk_check(&t);
    }
}

static void row_08_zeroes_behind_export_name(void **state)
{
    (void)state;
    for (uint32_t flags = 0; flags <= 3; flags++) {
        struct talk t;
        talk_init(&t);
        hear_greeting(&t);
        say_flags(&t, flags);
        say_option(&t, NBD_OPT_EXPORT_NAME, "read-only", 9);
        put_u64(&t.heard, 3001);
        put_u16(&t.heard, 0x000f);
        if ((flags & 2) == 0)
            put_zeros(&t.heard, 124);
        t.end = SESSION_NEGOTIATED;
        talk_check(&t);
    }
}

static void row_08_go_never_pads(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    hear_greeting(&t);
    say_flags(&t, 1);
    talk_go(&t, DISK, FLAGS_DISK);
    talk_check(&t);
}

static void row_09_option_without_magic(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    put_text(&t.said, "IHAVEOPS");
    put_zeros(&t.said, 8);
    t.end = SESSION_BAD;
    talk_check(&t);
}

static void row_10_structured_replies_twice(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    say_option(&t, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    hear_error(&t, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID,
               "structured replies were negotiated before");
    talk_go(&t, DISK, FLAGS_DISK | NBD_FLAG_SEND_DF);
    talk_check(&t);
}

static void row_11_bad_options_do_not_disconnect(void **state)
{
    (void)state;
    static const uint32_t options[] = {NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_LIST_META_CONTEXT,
                                       NBD_OPT_SET_META_CONTEXT};
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    for (size_t i = 0; i < 4; i++) {
        say_option(&t, options[i], "\0\0\0\0", 4);
        hear_error(&t, options[i], NBD_REP_ERR_INVALID, "the option has too little data");
        // A name longer than the option.
        say_option(&t, options[i], "\0\0\0\007disk\0\0\0\0", 12);
        t.said.data[t.said.length - 9] = 9;
        hear_error(&t, options[i], NBD_REP_ERR_INVALID, lengths_differ);
        say_option(&t, options[i], "\xff\xff\xff\xff\0\0\0\0\0\0\0\0", 12);
        hear_error(&t, options[i], NBD_REP_ERR_INVALID, lengths_differ);
    }
    talk_go(&t, DISK, FLAGS_DISK | NBD_FLAG_SEND_DF);
    talk_check(&t);
}

static void row_12_shutting_down(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.host.shutting_down = true;
    talk_hello(&t);
    say_option(&t, NBD_OPT_LIST, NULL, 0);
    hear_error(&t, NBD_OPT_LIST, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    say_info(&t, NBD_OPT_GO, "disk", NULL, 0);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    say_option(&t, NBD_OPT_ABORT, NULL, 0);
    hear_ack(&t, NBD_OPT_ABORT);
    t.end = SESSION_CLOSE;
    talk_check(&t);

    talk_init(&t);
    t.host.shutting_down = true;
    talk_hello(&t);
    say_option(&t, NBD_OPT_EXPORT_NAME, "disk", 4);
    t.end = SESSION_CLOSE;
    talk_check(&t);
}

// ---- Options ------------------------------------------------------------------------------------

static void row_13_unknown_export_ends_the_session(void **state)
{
    (void)state;
    static const char *const names[] = {"disk1", "dis", "Disk", "disk\0", " "};
    for (size_t i = 0; i < 5; i++) {
        struct talk t;
        talk_init(&t);
        talk_hello(&t);
        say_option(&t, NBD_OPT_EXPORT_NAME, names[i], i == 3 ? 5 : strlen(names[i]));
        t.end = SESSION_CLOSE;
        talk_check(&t);
    }
}

static void row_13_empty_name_is_the_default_export(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_EXPORT_NAME, NULL, 0);
    put_u64(&t.heard, 1 << 20);
    put_u16(&t.heard, FLAGS_DISK);
    t.end = SESSION_NEGOTIATED;
    talk_check(&t);
}

static void row_14_abort(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_ABORT, NULL, 0);
    hear_ack(&t, NBD_OPT_ABORT);
    t.end = SESSION_CLOSE;
    talk_check(&t);

    // With data, and more behind it.
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_ABORT, "why not", 7);
    hear_ack(&t, NBD_OPT_ABORT);
    say_option(&t, NBD_OPT_LIST, NULL, 0);
    t.end = SESSION_CLOSE;
    talk_check(&t);
}

static void hear_server(struct talk *t, const char *name, const char *description)
{
    struct bytes data = {0};
    put_u32(&data, (uint32_t)strlen(name));
    put_text(&data, name);
    put_text(&data, description);
    hear_option(t, NBD_OPT_LIST, NBD_REP_SERVER, data.data, data.length);
    free(data.data);
}

static void row_15_list(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_LIST, NULL, 0);
    hear_server(&t, "disk", "a disk");
    hear_server(&t, "read-only", "another");
    hear_server(&t, "plain", "");
    hear_server(&t, talk_long_name, "");
    hear_ack(&t, NBD_OPT_LIST);
    say_option(&t, NBD_OPT_LIST, "data", 4);
    hear_error(&t, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "this option has no data");
    talk_go(&t, DISK, FLAGS_DISK);
    talk_check(&t);
}

static void row_16_peek_export(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_PEEK_EXPORT, "disk", 4);
    hear_error(&t, NBD_OPT_PEEK_EXPORT, NBD_REP_ERR_UNSUP, "unknown option");
    talk_check(&t);
}

static void row_18_info_types(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    // Everything, some of it twice, and types that nobody knows.
    say_info(&t, NBD_OPT_GO, "", (uint16_t[]){2, 0xffff, 1, 0, 3, 1, 2, 4}, 8);
    hear_info(&t, NBD_OPT_GO, DISK, FLAGS_DISK);
    hear_option(&t, NBD_OPT_GO, NBD_REP_INFO, "\0\001disk", 6);
    hear_option(&t, NBD_OPT_GO, NBD_REP_INFO, "\0\002a disk", 8);
    hear_ack(&t, NBD_OPT_GO);
    t.end = SESSION_NEGOTIATED;
    talk_check(&t);

    // An export without a description sends none.
    talk_init(&t);
    talk_hello(&t);
    say_info(&t, NBD_OPT_INFO, "plain", (uint16_t[]){2}, 1);
    hear_info(&t, NBD_OPT_INFO, &talk_exports[EXPORT_PLAIN], 1);
    hear_ack(&t, NBD_OPT_INFO);
    talk_check(&t);
}

static void row_18_lengths_that_do_not_match(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_INFO, "\0\0\0\004disk\0\001", 10);
    hear_error(&t, NBD_OPT_INFO, NBD_REP_ERR_INVALID, lengths_differ);
    say_option(&t, NBD_OPT_INFO, "\0\0\0\004disk\0\001\0", 11);
    hear_error(&t, NBD_OPT_INFO, NBD_REP_ERR_INVALID, lengths_differ);
    say_option(&t, NBD_OPT_GO, "\0\0\0\004disk\0\0\0\0", 12);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_INVALID, lengths_differ);
    say_option(&t, NBD_OPT_GO, "\0\0\0\005disk\0\0", 10);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_INVALID, lengths_differ);
    talk_check(&t);
}

static void row_19_unknown_export(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_info(&t, NBD_OPT_INFO, "nothing", NULL, 0);
    hear_error(&t, NBD_OPT_INFO, NBD_REP_ERR_UNKNOWN, no_such_export);
    say_info(&t, NBD_OPT_GO, "nothing", NULL, 0);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN, no_such_export);
    say_info(&t, NBD_OPT_INFO, "disk", NULL, 0);
    hear_info(&t, NBD_OPT_INFO, DISK, FLAGS_DISK);
    hear_ack(&t, NBD_OPT_INFO);
    talk_go(&t, DISK, FLAGS_DISK);
    talk_check(&t);
}

static const char *refuse_disk(void *context, const struct session_export *export)
{
    (void)context;
    return export == DISK ? "not now" : NULL;
}

// The client may ask about an export that its owner refuses, but not use it; it may use another
// one.
static void refused_export(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.host.why_refused = refuse_disk;
    talk_hello(&t);
    say_info(&t, NBD_OPT_INFO, "disk", NULL, 0);
    hear_info(&t, NBD_OPT_INFO, DISK, FLAGS_DISK);
    hear_ack(&t, NBD_OPT_INFO);
    say_info(&t, NBD_OPT_GO, "disk", NULL, 0);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_POLICY, "not now");
    talk_go(&t, &talk_exports[EXPORT_PLAIN], 1);
    talk_check(&t);

    // EXPORT_NAME has no other way to refuse.
    talk_init(&t);
    t.host.why_refused = refuse_disk;
    talk_hello(&t);
    say_option(&t, NBD_OPT_EXPORT_NAME, "disk", 4);
    t.end = SESSION_CLOSE;
    talk_check(&t);
}

static size_t no_exports(void *context)
{
    (void)context;
    return 0;
}

static void row_19_no_export_at_all(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.host.export_count = no_exports;
    talk_hello(&t);
    say_option(&t, NBD_OPT_LIST, NULL, 0);
    hear_ack(&t, NBD_OPT_LIST);
    say_info(&t, NBD_OPT_GO, "", NULL, 0);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN, no_such_export);
    talk_check(&t);
}

static void row_21_structured_reply_with_data(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_STRUCTURED_REPLY, "x", 1);
    hear_error(&t, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID, "this option has no data");
    talk_go(&t, DISK, FLAGS_DISK); // without SEND_DF: they were not negotiated
    say_request(&t, 0, NBD_CMD_READ, 1, 0, 1);
    hear_simple(&t, 0, 1);
    put_pattern(&t.heard, 0, 1);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

// ---- Metadata contexts --------------------------------------------------------------------------

static const char *const no_query[] = {NULL};
static const char *const base_allocation[] = {"base:allocation", NULL};

// One listing: its queries match base:allocation, qemu:allocation-depth, or both.
static void list_contexts(struct talk *t, const char *name, const char *const *queries, bool base,
                          bool depth)
{
    say_meta(t, NBD_OPT_LIST_META_CONTEXT, name, queries);
    if (base)
        hear_context(t, NBD_OPT_LIST_META_CONTEXT, 0, "base:allocation");
    if (depth)
        hear_context(t, NBD_OPT_LIST_META_CONTEXT, 0, "qemu:allocation-depth");
    hear_ack(t, NBD_OPT_LIST_META_CONTEXT);
}

static void row_22_list_meta_context(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    list_contexts(&t, "disk", no_query, true, true);
    list_contexts(&t, "disk", (const char *const[]){"base:", NULL}, true, false);
    list_contexts(&t, "disk", base_allocation, true, false);
    list_contexts(&t, "disk", (const char *const[]){"x:y", "base:", "base:allocation", NULL}, true,
                  false);
    list_contexts(&t, "disk", (const char *const[]){"qemu:", NULL}, false, true);
    list_contexts(&t, "disk", (const char *const[]){"qemu:allocation-depth", "base:", NULL}, true,
                  true);
    // This export does not offer the depth.
    list_contexts(&t, "plain", no_query, true, false);
    list_contexts(&t, "plain", (const char *const[]){"qemu:allocation-depth", NULL}, false, false);
    say_meta(&t, NBD_OPT_LIST_META_CONTEXT, "nothing", base_allocation);
    hear_error(&t, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_UNKNOWN, no_such_export);
    // A listing selects nothing.
    talk_go(&t, DISK, FLAGS_DISK | NBD_FLAG_SEND_DF);
    say_request(&t, 0, NBD_CMD_BLOCK_STATUS, 3, 0, 512);
    hear_error_chunk(&t, NBD_EINVAL, 3, "no metadata context was negotiated");
    talk_check(&t);
}

static void row_22_and_23_structured_replies_come_first(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_meta(&t, NBD_OPT_LIST_META_CONTEXT, "disk", no_query);
    hear_error(&t, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_INVALID, "structured replies come first");
    say_meta(&t, NBD_OPT_SET_META_CONTEXT, "disk", base_allocation);
    hear_error(&t, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID, "structured replies come first");
    talk_check(&t);
}

static const struct session_status_extent one_extent = {.length = 4096, .flags = NBD_STATE_HOLE};

// Goes to the export and asks for its status, which is answered or not.
static void ask_status(struct talk *t, enum session_event end)
{
    t->answers.extents = &one_extent;
    t->answers.extent_count = 1;
    talk_go(t, DISK, FLAGS_DISK | NBD_FLAG_SEND_DF);
    say_request(t, 0, NBD_CMD_BLOCK_STATUS, 3, 0, 4096);
    if (end == SESSION_REQUEST) {
        hear_chunk(t, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, 3, 12);
        put_u32(&t->heard, 1);
        put_u32(&t->heard, 4096);
        put_u32(&t->heard, 1);
    } else {
        hear_error_chunk(t, NBD_EINVAL, 3, "no metadata context was negotiated");
    }
    t->end = end;
}

static void row_23_set_meta_context(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    // A context that is asked for twice is one context.
    say_meta(&t, NBD_OPT_SET_META_CONTEXT, "disk",
             (const char *const[]){"base:allocation", "what:ever", "base:allocation", NULL});
    hear_context(&t, NBD_OPT_SET_META_CONTEXT, 1, "base:allocation");
    hear_ack(&t, NBD_OPT_SET_META_CONTEXT);
    ask_status(&t, SESSION_REQUEST);
    talk_check(&t);
}

static void row_23_a_later_set_replaces_the_first(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", false);
    say_meta(&t, NBD_OPT_SET_META_CONTEXT, "disk", no_query);
    hear_ack(&t, NBD_OPT_SET_META_CONTEXT);
    ask_status(&t, SESSION_NEGOTIATED);
    talk_check(&t);

    // A request that fails also deselects all.
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", false);
    say_meta(&t, NBD_OPT_SET_META_CONTEXT, "nothing", base_allocation);
    hear_error(&t, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_UNKNOWN, no_such_export);
    ask_status(&t, SESSION_NEGOTIATED);
    talk_check(&t);

    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", false);
    say_option(&t, NBD_OPT_SET_META_CONTEXT, NULL, 0);
    hear_error(&t, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID, "the option has too little data");
    ask_status(&t, SESSION_NEGOTIATED);
    talk_check(&t);

    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", false);
    say_option(&t, NBD_OPT_SET_META_CONTEXT, "\0\0\0\004disk\0\0\0\001\0\0\0\001", 16);
    hear_error(&t, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID, lengths_differ);
    ask_status(&t, SESSION_NEGOTIATED);
    talk_check(&t);
}

static void row_24_queries(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    // No match is a plain ACK; base: is no wildcard here.
    say_meta(&t, NBD_OPT_SET_META_CONTEXT, "disk",
             (const char *const[]){"base:", "base", "", ":", "base:allocation2", "base:alloc",
                                   "qemu:dirty-bitmap:b", "qemu:", "allocation", NULL});
    hear_ack(&t, NBD_OPT_SET_META_CONTEXT);
    say_meta(&t, NBD_OPT_LIST_META_CONTEXT, "disk", (const char *const[]){"bas", "unknown:", NULL});
    hear_ack(&t, NBD_OPT_LIST_META_CONTEXT);
    // A query that overruns, too many of them, something behind the last one.
    say_option(&t, NBD_OPT_LIST_META_CONTEXT, "\0\0\0\004disk\0\0\0\001\0\0\0\006base:", 21);
    hear_error(&t, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_INVALID, lengths_differ);
    say_option(&t, NBD_OPT_LIST_META_CONTEXT, "\0\0\0\004disk\0\0\0\002\0\0\0\005base:", 21);
    hear_error(&t, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_INVALID, lengths_differ);
    say_option(&t, NBD_OPT_LIST_META_CONTEXT, "\0\0\0\004disk\0\0\0\000\0\0\0\005base:", 21);
    hear_error(&t, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_INVALID, lengths_differ);
    say_option(&t, NBD_OPT_LIST_META_CONTEXT, "\0\0\0\004disk\xff\xff\xff\xff", 12);
    hear_error(&t, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_INVALID, lengths_differ);
    talk_check(&t);
}

static void row_25_contexts_of_another_export(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "plain", false);
    ask_status(&t, SESSION_NEGOTIATED);
    talk_check(&t);

    // The empty name stands for that export.
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "", false);
    ask_status(&t, SESSION_REQUEST);
    talk_check(&t);

    // INFO of another one in between changes nothing.
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", false);
    say_info(&t, NBD_OPT_INFO, "plain", NULL, 0);
    hear_info(&t, NBD_OPT_INFO, &talk_exports[EXPORT_PLAIN], 1 | NBD_FLAG_SEND_DF);
    hear_ack(&t, NBD_OPT_INFO);
    ask_status(&t, SESSION_REQUEST);
    talk_check(&t);
}

static void row_30_only_fixed_newstyle_haggles(void **state)
{
    (void)state;
    for (uint32_t option = 2; option <= 11; option++) {
        struct talk t;
        talk_init(&t);
        hear_greeting(&t);
        say_flags(&t, 2);
        say_option(&t, option, NULL, 0);
        t.end = SESSION_BAD;
        talk_check(&t);
    }
}

// ---- Bounds -------------------------------------------------------------------------------------

// A client that sends options and takes no answer is not read from any more; all its options are
// answered once it does.
static void options_wait_while_output_is_unsent(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    for (size_t i = 0; i < 1000; i++)
        say_option(&t, NBD_OPT_LIST, NULL, 0);
    struct session *s = session_new(&t.host);
    assert_non_null(s);
    struct bytes out = {0};
    size_t given = 0;
    for (;;) {
        struct session_request request;
        struct iovec iov[2];
        if (session_input(s, iov) == 0)
            break;
        size_t n = t.said.length - given < iov[0].iov_len ? t.said.length - given : iov[0].iov_len;
        assert_true(n > 0);
        memcpy(iov[0].iov_base, t.said.data + given, n);
        session_received(s, n);
        given += n;
        assert_int_equal(session_next(s, &request), SESSION_MORE);
    }
    assert_true(session_output_bytes(s) > OUTPUT_HELD_MAX);
    assert_true(session_output_bytes(s) < OUTPUT_HELD_MAX + 10000);

    struct bytes requests = {0};
    enum session_event end = talk_play(s, &t.answers, t.said.data + given, t.said.length - given,
                                       (struct pace){.sip = 5000}, &out, &requests);
    assert_int_equal(end, SESSION_MORE);
    // An answer lists four exports and says ACK.
    size_t answer = 5 * 20 + 4 * 4 + 4 + 6 + 9 + 7 + 5 + 4096;
    assert_int_equal(out.length, 18 + 1000 * answer);
    session_free(s);
    free(out.data);
    free(requests.data);
    free(t.said.data);
    free(t.heard.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_01_baseline),
        cmocka_unit_test(row_02_unknown_option),
        cmocka_unit_test(row_02_unknown_option_larger_than_any_buffer),
        cmocka_unit_test(row_03_export_name_as_well_as_go),
        cmocka_unit_test(row_04_names_of_4096_bytes),
        cmocka_unit_test(row_04_longer_names_are_refused),
        cmocka_unit_test(row_06_greeting),
        cmocka_unit_test(row_07_client_flags_not_offered),
        cmocka_unit_test(row_08_zeroes_behind_export_name),
        cmocka_unit_test(row_08_go_never_pads),
        cmocka_unit_test(row_09_option_without_magic),
        cmocka_unit_test(row_10_structured_replies_twice),
        cmocka_unit_test(row_11_bad_options_do_not_disconnect),
        cmocka_unit_test(row_12_shutting_down),
        cmocka_unit_test(row_13_unknown_export_ends_the_session),
        cmocka_unit_test(row_13_empty_name_is_the_default_export),
        cmocka_unit_test(row_14_abort),
        cmocka_unit_test(row_15_list),
        cmocka_unit_test(row_16_peek_export),
        cmocka_unit_test(row_18_info_types),
        cmocka_unit_test(row_18_lengths_that_do_not_match),
        cmocka_unit_test(row_19_unknown_export),
        cmocka_unit_test(row_19_no_export_at_all),
        cmocka_unit_test(refused_export),
        cmocka_unit_test(row_21_structured_reply_with_data),
        cmocka_unit_test(row_22_list_meta_context),
        cmocka_unit_test(row_22_and_23_structured_replies_come_first),
        cmocka_unit_test(row_23_set_meta_context),
        cmocka_unit_test(row_23_a_later_set_replaces_the_first),
        cmocka_unit_test(row_24_queries),
        cmocka_unit_test(row_25_contexts_of_another_export),
        cmocka_unit_test(row_30_only_fixed_newstyle_haggles),
        cmocka_unit_test(options_wait_while_output_is_unsent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
