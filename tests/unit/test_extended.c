// SPDX-License-Identifier: Apache-2.0
// test_extended.c: extended headers, and the metadata contexts with both kinds of headers. A test
// has the number of its row in docs/protocol-checklist.md.
#include <errno.h>
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
#define PLAIN (&talk_exports[EXPORT_PLAIN])
#define FLAGS_DISK 0x0ded // those of the export, and SEND_DF
#define PAYLOAD NBD_CMD_FLAG_PAYLOAD_LEN

static const char bad_flag[] = "a flag that does not go with this command";
static const char bad_list[] = "not a list of metadata contexts that were negotiated";

// Everything up to the transmission phase, with extended headers.
static void begin(struct talk *t, const struct session_export *export)
{
    talk_init(t);
    talk_hello(t);
    talk_extended(t);
    talk_go(t, export, export->flags | NBD_FLAG_SEND_DF);
}

// Extended headers with contexts: both of them on "disk", base:allocation on others.
static void begin_with_contexts(struct talk *t, const struct session_export *export)
{
    talk_init(t);
    talk_hello(t);
    talk_extended(t);
    talk_contexts(t, export->name, export == DISK);
    talk_go(t, export, export->flags | NBD_FLAG_SEND_DF | NBD_FLAG_BLOCK_STATUS_PAYLOAD);
}

static void say_write(struct talk *t, uint16_t flags, uint64_t cookie, uint64_t offset,
                      uint32_t length)
{
    say_extended(t, flags, NBD_CMD_WRITE, cookie, offset, length);
    put_pattern(&t->said, offset, length);
}

static void hear_none(struct talk *t, uint64_t cookie, uint64_t offset)
{
    hear_extended(t, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, cookie, offset, 0);
}

static void still_alive(struct talk *t)
{
    say_extended(t, 0, NBD_CMD_FLUSH, 0xffffffffffffffff, 0, 0);
    hear_none(t, 0xffffffffffffffff, 0);
    see_request(t, NBD_CMD_FLUSH, 0, 0, 0);
    t->end = SESSION_REQUEST;
}

// ---- Negotiation --------------------------------------------------------------------------------

static void row_26_supersedes_structured_replies(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_extended(&t);
    say_option(&t, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    hear_error(&t, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_EXT_HEADER_REQD,
               "extended headers were negotiated");
    say_option(&t, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    hear_error(&t, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ERR_INVALID,
               "extended headers were negotiated before");
    talk_go(&t, DISK, FLAGS_DISK);
    still_alive(&t);
    talk_check(&t);
}

static void row_26_works_without_structured_replies(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, DISK);
    say_extended(&t, 0, NBD_CMD_READ, 1, 512, 16);
    hear_extended(&t, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA, 1, 512, 8 + 16);
    put_u64(&t.heard, 512);
    put_pattern(&t.heard, 512, 16);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_26_with_data(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    say_option(&t, NBD_OPT_EXTENDED_HEADERS, "x", 1);
    hear_error(&t, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ERR_INVALID, "this option has no data");
    talk_go(&t, DISK, FLAGS_DISK & ~NBD_FLAG_SEND_DF);
    say_request(&t, 0, NBD_CMD_FLUSH, 1, 0, 0);
    hear_simple(&t, 0, 1);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_26_no_export_name(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_extended(&t);
    say_option(&t, NBD_OPT_EXPORT_NAME, "disk", 4);
    t.end = SESSION_CLOSE;
    talk_check(&t);
}

static void row_37_block_status_payload_only_with_contexts(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", true);
    talk_go(&t, DISK, FLAGS_DISK); // structured replies are not enough
    talk_check(&t);

    talk_init(&t);
    talk_hello(&t);
    talk_extended(&t);
    talk_contexts(&t, "disk", true);
    say_info(&t, NBD_OPT_INFO, "disk", NULL, 0);
    hear_info(&t, NBD_OPT_INFO, DISK, FLAGS_DISK | NBD_FLAG_BLOCK_STATUS_PAYLOAD);
    hear_ack(&t, NBD_OPT_INFO);
    talk_go(&t, PLAIN, 1 | NBD_FLAG_SEND_DF); // another export than they were set for
    talk_check(&t);
}

// ---- Headers ------------------------------------------------------------------------------------

static void row_59_every_reply_is_a_chunk(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, DISK);
    say_extended(&t, 0, NBD_CMD_FLUSH, 1, 77, 99);
    hear_none(&t, 1, 77);
    say_extended(&t, NBD_CMD_FLAG_FUA, NBD_CMD_TRIM, 2, 512, 1024);
    hear_none(&t, 2, 512);
    say_write(&t, PAYLOAD | NBD_CMD_FLAG_FUA, 3, 1, 5);
    hear_none(&t, 3, 1);
    say_extended(&t, 0, NBD_CMD_CACHE, 4, 6, 0);
    hear_none(&t, 4, 6);
    say_extended(&t, 0, NBD_CMD_READ, 5, 1 << 20, 1);
    hear_extended_error(&t, NBD_EINVAL, 5, 1 << 20, "the range ends beyond the export");
    // A length of zero.
    say_extended(&t, 0, NBD_CMD_READ, 6, 1 << 20, 0);
    hear_none(&t, 6, 1 << 20);
    say_extended(&t, 0, NBD_CMD_READ, 7, (1 << 20) + 1, 0);
    hear_extended_error(&t, NBD_EINVAL, 7, (1 << 20) + 1, "the range ends beyond the export");
    say_write(&t, PAYLOAD, 8, 9, 0);
    hear_none(&t, 8, 9);
    see_request(&t, NBD_CMD_FLUSH, 0, 0, 0);
    see_request(&t, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 512, 1024);
    see_request(&t, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 1, 5);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_59_holes(void **state)
{
    (void)state;
    static const struct session_read_part parts[] = {{.length = 512, .hole = true},
                                                     {.length = 100}};
    struct talk t;
    begin(&t, DISK);
    t.answers.parts = parts;
    t.answers.part_count = 2;
    say_extended(&t, 0, NBD_CMD_READ, 5, 4096, 612);
    hear_extended(&t, 0, NBD_REPLY_TYPE_OFFSET_HOLE, 5, 4096, 12);
    put_u64(&t.heard, 4096);
    put_u32(&t.heard, 512);
    hear_extended(&t, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA, 5, 4096, 108);
    put_u64(&t.heard, 4608);
    put_pattern(&t.heard, 4608, 100);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_59_lengths_of_64_bits(void **state)
{
    (void)state;
    struct talk t;
    begin_with_contexts(&t, PLAIN);
    t.answers.extents = &(const struct session_status_extent){.length = 1ull << 50, .flags = 3};
    t.answers.extent_count = 1;
    say_extended(&t, 0, NBD_CMD_BLOCK_STATUS, 1, 512, (1ull << 40) - 512);
    hear_extended(&t, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, 1, 512, 8 + 16);
    put_u32(&t.heard, 1);
    put_u32(&t.heard, 1);
    put_u64(&t.heard, (1ull << 40) - 512);
    put_u64(&t.heard, 3);
    say_extended(&t, 0, NBD_CMD_BLOCK_STATUS, 2, 512, 1ull << 40);
    hear_extended_error(&t, NBD_EINVAL, 2, 512, "the range ends beyond the export");
    say_extended(&t, 0, NBD_CMD_READ, 3, 0, 1ull << 33);
    hear_extended_error(&t, NBD_EINVAL, 3, 0, "longer than the largest block");
    say_extended(&t, 0, NBD_CMD_READ, 4, 1, 0xffffffffffffffff);
    hear_extended_error(&t, NBD_EINVAL, 4, 1, "the range ends beyond the export");
    see_request(&t, NBD_CMD_BLOCK_STATUS, 0, 512, (1ull << 40) - 512);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_59_compact_request(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, DISK);
    say_request(&t, 0, NBD_CMD_FLUSH, 1, 0, 0);
    put_zeros(&t.said, 4);
    t.end = SESSION_BAD;
    talk_check(&t);

    // Extended headers after structured replies.
    talk_init(&t);
    talk_transmission(&t, DISK, true);
    say_extended(&t, 0, NBD_CMD_FLUSH, 1, 0, 0);
    t.end = SESSION_BAD;
    talk_check(&t);
}

static void row_59_disconnect(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, DISK);
    say_extended(&t, 0, NBD_CMD_DISC, 1, 0, 0);
    t.end = SESSION_DISCONNECT;
    talk_check(&t);
}

static void row_60_payload_len_out_of_place(void **state)
{
    (void)state;
    static const uint16_t commands[] = {NBD_CMD_READ,  NBD_CMD_FLUSH,        NBD_CMD_TRIM,
                                        NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES, NBD_CMD_BLOCK_STATUS};
    struct talk t;
    begin(&t, DISK);
    for (size_t i = 0; i < 6; i++) {
        say_extended(&t, PAYLOAD, commands[i], i, 512, 12);
        put_text(&t.said, "twelve bytes");
        hear_extended_error(&t, NBD_EINVAL, i, 512, bad_flag);
    }
    say_extended(&t, PAYLOAD, 99, 8, 512, 12);
    put_text(&t.said, "twelve bytes");
    hear_extended_error(&t, NBD_EINVAL, 8, 512, "unknown command");
    still_alive(&t);
    talk_check(&t);

    // The flag does not exist in compact headers.
    talk_init(&t);
    talk_transmission(&t, DISK, true);
    say_request(&t, PAYLOAD, NBD_CMD_WRITE, 1, 0, 3);
    put_pattern(&t.said, 0, 3);
    hear_error_chunk(&t, NBD_EINVAL, 1, bad_flag);
    say_request(&t, PAYLOAD, NBD_CMD_READ, 2, 0, 3);
    hear_error_chunk(&t, NBD_EINVAL, 2, bad_flag);
    talk_check(&t);
}

static void row_60_write_without_payload_len(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, DISK);
    say_extended(&t, 0, NBD_CMD_WRITE, 1, 0, 1ull << 40);
    hear_extended_error(&t, NBD_EINVAL, 1, 0, "a write without a payload");
    say_write(&t, PAYLOAD, 2, 8, 0);
    hear_none(&t, 2, 8);
    still_alive(&t);
    talk_check(&t);
}

static void row_60_refused_write_is_consumed(void **state)
{
    (void)state;
    struct talk t;
    begin(&t, &talk_exports[EXPORT_READ_ONLY]);
    say_write(&t, PAYLOAD, 1, 0, 100);
    hear_extended_error(&t, NBD_EPERM, 1, 0, "the export is read-only");
    still_alive(&t);
    talk_check(&t);
}

static void row_60_payload_too_large(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {(32 << 20) + 1, 1ull << 32, 0xffffffffffffffff};
    for (size_t i = 0; i < 3; i++) {
        struct talk t;
        begin(&t, PLAIN);
        say_extended(&t, PAYLOAD, i == 1 ? NBD_CMD_READ : NBD_CMD_WRITE, 1, 0, lengths[i]);
        t.end = SESSION_BAD;
        talk_check(&t);
    }
}

// ---- Contexts -----------------------------------------------------------------------------------

static const struct session_status_extent layers[] = {
    {.length = 512, .flags = 0, .depth = 1},
    {.length = 512, .flags = 0, .depth = 2},
    {.length = 1024, .flags = 3, .depth = 2},
    {.length = 2048, .flags = 3, .depth = 0},
};

// The answer about layers: descriptors of base:allocation, of the depth.
static const uint32_t layers_base[][2] = {{1024, 0}, {3072, 3}};
static const uint32_t layers_depth[][2] = {{512, 1}, {1536, 2}, {2048, 0}};

static void hear_status_ext(struct talk *t, uint16_t flags, uint64_t cookie, uint32_t id,
                            const uint32_t (*descriptors)[2], uint32_t count)
{
    hear_extended(t, flags, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, cookie, 0, 8 + 16 * count);
    put_u32(&t->heard, id);
    put_u32(&t->heard, count);
    for (size_t i = 0; i < count; i++) {
        put_u64(&t->heard, descriptors[i][0]);
        put_u64(&t->heard, descriptors[i][1]);
    }
}

static void hear_status(struct talk *t, uint16_t flags, uint64_t cookie, uint32_t id,
                        const uint32_t (*descriptors)[2], uint32_t count)
{
    hear_chunk(t, flags, NBD_REPLY_TYPE_BLOCK_STATUS, cookie, 4 + 8 * count);
    put_u32(&t->heard, id);
    for (size_t i = 0; i < count; i++) {
        put_u32(&t->heard, descriptors[i][0]);
        put_u32(&t->heard, descriptors[i][1]);
    }
}

static void use_layers(struct talk *t)
{
    t->answers.extents = layers;
    t->answers.extent_count = 4;
}

static void row_50_one_chunk_a_context(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    use_layers(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", true);
    talk_go(&t, DISK, FLAGS_DISK);
    say_request(&t, 0, NBD_CMD_BLOCK_STATUS, 5, 0, 8192);
    hear_status(&t, 0, 5, 1, layers_base, 2);
    hear_status(&t, NBD_REPLY_FLAG_DONE, 5, 2, layers_depth, 3);
    say_request(&t, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_BLOCK_STATUS, 6, 0, 8192);
    hear_status(&t, 0, 6, 1, layers_base, 1);
    hear_status(&t, NBD_REPLY_FLAG_DONE, 6, 2, layers_depth, 1);
    t.end = SESSION_REQUEST;
    talk_check(&t);

    // The depth alone.
    talk_init(&t);
    use_layers(&t);
    talk_hello(&t);
    talk_structured(&t);
    say_meta(&t, NBD_OPT_SET_META_CONTEXT, "disk",
             (const char *const[]){"qemu:allocation-depth", NULL});
    hear_context(&t, NBD_OPT_SET_META_CONTEXT, 2, "qemu:allocation-depth");
    hear_ack(&t, NBD_OPT_SET_META_CONTEXT);
    talk_go(&t, DISK, FLAGS_DISK);
    say_request(&t, 0, NBD_CMD_BLOCK_STATUS, 5, 0, 8192);
    hear_status(&t, NBD_REPLY_FLAG_DONE, 5, 2, layers_depth, 3);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_61_block_status_ext(void **state)
{
    (void)state;
    struct talk t;
    begin_with_contexts(&t, DISK);
    use_layers(&t);
    say_extended(&t, 0, NBD_CMD_BLOCK_STATUS, 5, 0, 8192);
    hear_status_ext(&t, 0, 5, 1, layers_base, 2);
    hear_status_ext(&t, NBD_REPLY_FLAG_DONE, 5, 2, layers_depth, 3);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void say_list(struct talk *t, uint16_t flags, uint64_t cookie, uint64_t length,
                     const uint32_t *ids, size_t count)
{
    say_extended(t, flags | PAYLOAD, NBD_CMD_BLOCK_STATUS, cookie, 0, 8 + 4 * count);
    put_u64(&t->said, length);
    for (size_t i = 0; i < count; i++)
        put_u32(&t->said, ids[i]);
}

static void row_61_request_with_payload(void **state)
{
    (void)state;
    struct talk t;
    begin_with_contexts(&t, DISK);
    use_layers(&t);
    say_list(&t, 0, 1, 8192, (uint32_t[]){2}, 1);
    hear_status_ext(&t, NBD_REPLY_FLAG_DONE, 1, 2, layers_depth, 3);
    say_list(&t, NBD_CMD_FLAG_REQ_ONE, 2, 8192, (uint32_t[]){1}, 1);
    hear_status_ext(&t, NBD_REPLY_FLAG_DONE, 2, 1, layers_base, 1);
    say_list(&t, 0, 3, 8192, (uint32_t[]){2, 1}, 2);
    hear_status_ext(&t, 0, 3, 1, layers_base, 2);
    hear_status_ext(&t, NBD_REPLY_FLAG_DONE, 3, 2, layers_depth, 3);
    see_request(&t, NBD_CMD_BLOCK_STATUS, 0, 0, 8192);
    see_request(&t, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, 8192);
    see_request(&t, NBD_CMD_BLOCK_STATUS, 0, 0, 8192);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_61_bad_lists_are_consumed(void **state)
{
    (void)state;
    struct talk t;
    begin_with_contexts(&t, DISK);
    say_list(&t, 0, 1, 8192, (uint32_t[]){3}, 1);
    hear_extended_error(&t, NBD_EINVAL, 1, 0, bad_list);
    say_list(&t, 0, 2, 8192, (uint32_t[]){1, 1}, 2);
    hear_extended_error(&t, NBD_EINVAL, 2, 0, bad_list);
    say_list(&t, 0, 3, 8192, (uint32_t[]){1, 0}, 2);
    hear_extended_error(&t, NBD_EINVAL, 3, 0, bad_list);
    say_list(&t, 0, 4, 8192, NULL, 0);
    hear_extended_error(&t, NBD_EINVAL, 4, 0, bad_list);
    // More ids than exist, and lengths that hold no list.
    say_list(&t, 0, 5, 8192, (uint32_t[]){1, 2, 3}, 3);
    hear_extended_error(&t, NBD_EINVAL, 5, 0, bad_flag);
    static const uint32_t lengths[] = {0, 1, 4, 7, 9, 13, 3000};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        say_extended(&t, PAYLOAD, NBD_CMD_BLOCK_STATUS, 6, 0, lengths[i]);
        put_zeros(&t.said, lengths[i]);
        hear_extended_error(&t, NBD_EINVAL, 6, 0, bad_flag);
    }
    // The range inside of the list is checked like any other.
    say_list(&t, 0, 7, (1 << 20) + 1, (uint32_t[]){1}, 1);
    hear_extended_error(&t, NBD_EINVAL, 7, 0, "the range ends beyond the export");
    say_list(&t, 0, 8, 0, (uint32_t[]){1}, 1);
    hear_extended_error(&t, NBD_EINVAL, 8, 0, "length is zero");
    still_alive(&t);
    talk_check(&t);

    // A context that exists and was not negotiated.
    begin_with_contexts(&t, PLAIN);
    say_list(&t, 0, 1, 8192, (uint32_t[]){2}, 1);
    hear_extended_error(&t, NBD_EINVAL, 1, 0, bad_list);
    talk_check(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_26_supersedes_structured_replies),
        cmocka_unit_test(row_26_works_without_structured_replies),
        cmocka_unit_test(row_26_with_data),
        cmocka_unit_test(row_26_no_export_name),
        cmocka_unit_test(row_37_block_status_payload_only_with_contexts),
        cmocka_unit_test(row_50_one_chunk_a_context),
        cmocka_unit_test(row_59_every_reply_is_a_chunk),
        cmocka_unit_test(row_59_holes),
        cmocka_unit_test(row_59_lengths_of_64_bits),
        cmocka_unit_test(row_59_compact_request),
        cmocka_unit_test(row_59_disconnect),
        cmocka_unit_test(row_60_payload_len_out_of_place),
        cmocka_unit_test(row_60_write_without_payload_len),
        cmocka_unit_test(row_60_refused_write_is_consumed),
        cmocka_unit_test(row_60_payload_too_large),
        cmocka_unit_test(row_61_block_status_ext),
        cmocka_unit_test(row_61_request_with_payload),
        cmocka_unit_test(row_61_bad_lists_are_consumed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
