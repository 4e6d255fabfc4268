// SPDX-License-Identifier: Apache-2.0
// test_session_tls.c: STARTTLS in the session: answers before and after it, and state that it
// drops. A test has the number of its row in docs/protocol-checklist.md.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "protocol/session.h"
#include "protocol/wire.h"
#include "tests/unit/talk.h"

#define DISK (&talk_exports[EXPORT_DISK])
#define FLAGS_DISK 0x0d6d

static const char tls_first[] = "TLS comes first";

static void begin(struct talk *t, enum session_tls tls)
{
    talk_init(t);
    t->host.tls = tls;
    talk_hello(t);
}

static void row_17_starttls(void **state)
{
    (void)state;
    static const enum session_tls modes[] = {SESSION_TLS_OPTIONAL, SESSION_TLS_REQUIRED};
    for (size_t i = 0; i < 2; i++) {
        struct talk t;
        begin(&t, modes[i]);
        talk_starttls(&t);
        talk_go(&t, DISK, FLAGS_DISK);
        say_request(&t, 0, NBD_CMD_FLUSH, 1, 0, 0);
        hear_simple(&t, 0, 1);
        t.end = SESSION_REQUEST;
        talk_check(&t);
    }
}

static void row_17_with_data(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, SESSION_TLS_OPTIONAL);
    say_option(&t, NBD_OPT_STARTTLS, "x", 1);
    hear_error(&t, NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID, "this option has no data");
    talk_starttls(&t);
    talk_check(&t);
}

static void row_17_nothing_is_kept(void **state)
{
    (void)state;
    // Structured replies and contexts.
    struct talk t;
    begin(&t, SESSION_TLS_OPTIONAL);
    talk_structured(&t);
    talk_contexts(&t, "disk", true);
    talk_starttls(&t);
    talk_go(&t, DISK, FLAGS_DISK);
    say_request(&t, 0, NBD_CMD_READ, 1, 0, 4);
    hear_simple(&t, 0, 1);
    put_pattern(&t.heard, 0, 4);
    t.end = SESSION_REQUEST;
    talk_check(&t);

    // Structured replies are negotiated again; the earlier contexts are gone.
    begin(&t, SESSION_TLS_OPTIONAL);
    talk_structured(&t);
    talk_contexts(&t, "disk", true);
    talk_starttls(&t);
    talk_structured(&t);
    talk_go(&t, DISK, FLAGS_DISK | NBD_FLAG_SEND_DF);
    say_request(&t, 0, NBD_CMD_BLOCK_STATUS, 1, 0, 4);
    hear_error_chunk(&t, NBD_EINVAL, 1, "no metadata context was negotiated");
    talk_check(&t);
}

static void row_26_reset_by_starttls(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, SESSION_TLS_OPTIONAL);
    talk_extended(&t);
    talk_starttls(&t);
    talk_structured(&t);
    talk_go(&t, DISK, FLAGS_DISK | NBD_FLAG_SEND_DF);
    say_request(&t, 0, NBD_CMD_FLUSH, 1, 0, 0);
    hear_simple(&t, 0, 1);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_30_optional_without(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, SESSION_TLS_OPTIONAL);
    talk_structured(&t);
    talk_go(&t, DISK, FLAGS_DISK | NBD_FLAG_SEND_DF);
    talk_check(&t);
}

static void row_30_not_without_fixed_newstyle(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.host.tls = SESSION_TLS_OPTIONAL;
    hear_greeting(&t);
    say_flags(&t, 0);
    say_option(&t, NBD_OPT_STARTTLS, NULL, 0);
    t.end = SESSION_BAD;
    talk_check(&t);
}

static void row_31_off(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, SESSION_TLS_OFF);
    say_option(&t, NBD_OPT_STARTTLS, NULL, 0);
    hear_error(&t, NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY, "this server has no TLS");
    talk_go(&t, DISK, FLAGS_DISK);
    talk_check(&t);
}

static void row_32_required_before(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, SESSION_TLS_REQUIRED);
    for (uint32_t option = 3; option < 14; option++) {
        if (option == NBD_OPT_STARTTLS)
            continue;
        say_option(&t, option, "data", option % 5);
        hear_error(&t, option, NBD_REP_ERR_TLS_REQD, tls_first);
    }
    // The existence of an export is not told either.
    say_info(&t, NBD_OPT_GO, "disk", NULL, 0);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_TLS_REQD, tls_first);
    say_info(&t, NBD_OPT_GO, "nothing", NULL, 0);
    hear_error(&t, NBD_OPT_GO, NBD_REP_ERR_TLS_REQD, tls_first);
    talk_starttls(&t);
    talk_go(&t, DISK, FLAGS_DISK);
    talk_check(&t);
}

static void row_32_required_end(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, SESSION_TLS_REQUIRED);
    say_option(&t, NBD_OPT_EXPORT_NAME, "disk", 4);
    t.end = SESSION_CLOSE;
    talk_check(&t);

    begin(&t, SESSION_TLS_REQUIRED);
    say_option(&t, NBD_OPT_ABORT, NULL, 0);
    hear_ack(&t, NBD_OPT_ABORT);
    t.end = SESSION_CLOSE;
    talk_check(&t);
}

static void row_33_second_starttls(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, SESSION_TLS_REQUIRED);
    talk_starttls(&t);
    say_option(&t, NBD_OPT_STARTTLS, NULL, 0);
    hear_error(&t, NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID, "TLS was started before");
    talk_go(&t, DISK, FLAGS_DISK);
    talk_check(&t);
}

static void row_34_bytes_behind_starttls(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, SESSION_TLS_OPTIONAL);
    say_option(&t, NBD_OPT_STARTTLS, NULL, 0);
    say_option(&t, NBD_OPT_LIST, NULL, 0);
    t.end = SESSION_BAD;
    talk_check_once(&t, SIZE_MAX);

    // A single one.
    begin(&t, SESSION_TLS_OPTIONAL);
    say_option(&t, NBD_OPT_STARTTLS, NULL, 0);
    put_zeros(&t.said, 1);
    t.end = SESSION_BAD;
    talk_check_once(&t, SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_17_starttls),
        cmocka_unit_test(row_17_with_data),
        cmocka_unit_test(row_17_nothing_is_kept),
        cmocka_unit_test(row_26_reset_by_starttls),
        cmocka_unit_test(row_30_optional_without),
        cmocka_unit_test(row_30_not_without_fixed_newstyle),
        cmocka_unit_test(row_31_off),
        cmocka_unit_test(row_32_required_before),
        cmocka_unit_test(row_32_required_end),
        cmocka_unit_test(row_33_second_starttls),
        cmocka_unit_test(row_34_bytes_behind_starttls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
