// SPDX-License-Identifier: Apache-2.0
// test_transmission.c: the session's transmission phase. A test of a row of
// docs/protocol-checklist.md has the number of the row.
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
#define READ_ONLY (&talk_exports[EXPORT_READ_ONLY])
#define PLAIN (&talk_exports[EXPORT_PLAIN])

static const char bad_flag[] = "a flag that does not go with this command";
static const char beyond[] = "the range ends beyond the export";
static const char too_long[] = "longer than the largest block";

static void say_write(struct talk *t, uint16_t flags, uint64_t cookie, uint64_t offset,
                      uint32_t length)
{
    say_request(t, flags, NBD_CMD_WRITE, cookie, offset, length);
    put_pattern(&t->said, offset, length);
}

static void hear_data(struct talk *t, uint16_t flags, uint64_t cookie, uint64_t offset,
                      uint32_t length)
{
    hear_chunk(t, flags, NBD_REPLY_TYPE_OFFSET_DATA, cookie, 8 + length);
    put_u64(&t->heard, offset);
    put_pattern(&t->heard, offset, length);
}

static void hear_hole(struct talk *t, uint16_t flags, uint64_t cookie, uint64_t offset,
                      uint32_t length)
{
    hear_chunk(t, flags, NBD_REPLY_TYPE_OFFSET_HOLE, cookie, 12);
    put_u64(&t->heard, offset);
    put_u32(&t->heard, length);
}

// Ends a talk whose requests were all refused with a flush, which shows that the stream is in step.
static void still_alive(struct talk *t)
{
    say_request(t, 0, NBD_CMD_FLUSH, 0xffffffffffffffff, 0, 0);
    hear_simple(t, 0, 0xffffffffffffffff);
    see_request(t, NBD_CMD_FLUSH, 0, 0, 0);
    t->end = SESSION_REQUEST;
}

// ---- Transmission flags -------------------------------------------------------------------------

static void row_36_read_only(void **state)
{
    (void)state;
    static const uint16_t writing[] = {NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES};
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, READ_ONLY, false);
    say_write(&t, 0, 1, 0, 100);
    hear_simple(&t, NBD_EPERM, 1);
    say_write(&t, 0, 1, 0, 0);
    hear_simple(&t, NBD_EPERM, 1);
    for (size_t i = 0; i < 2; i++) {
        say_request(&t, 0, writing[i], 2, 0, 1);
        hear_simple(&t, NBD_EPERM, 2);
    }
    still_alive(&t);
    talk_check(&t);
}

static void row_38_what_was_not_advertised(void **state)
{
    (void)state;
    static const uint16_t commands[] = {NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_CACHE,
                                        NBD_CMD_WRITE_ZEROES};
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, PLAIN, false);
    for (size_t i = 0; i < 4; i++) {
        say_request(&t, 0, commands[i], i, 0, commands[i] == NBD_CMD_FLUSH ? 0 : 512);
        hear_simple(&t, NBD_EINVAL, i);
    }
    say_write(&t, NBD_CMD_FLAG_FUA, 7, 0, 16);
    hear_simple(&t, NBD_EINVAL, 7);
    say_write(&t, 0, 8, 0, 16);
    hear_simple(&t, 0, 8);
    see_request(&t, NBD_CMD_WRITE, 0, 0, 16);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

// ---- Requests and replies -----------------------------------------------------------------------

static void row_39_request_without_magic(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, false);
    say_request(&t, 0, NBD_CMD_FLUSH, 1, 0, 0);
    hear_simple(&t, 0, 1);
    say_request(&t, 0, NBD_CMD_FLUSH, 2, 0, 0);
    t.said.data[t.said.length - 28] ^= 1;
    t.end = SESSION_BAD;
    talk_check(&t);
}

static void row_40_cookies_and_order(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.answers.reverse = true;
    talk_transmission(&t, DISK, false);
    say_request(&t, 0, NBD_CMD_READ, 0x0102030405060708, 10, 2);
    say_request(&t, 0, NBD_CMD_FLUSH, 0, 0, 0);
    say_write(&t, 0, 0xffffffffffffffff, 4, 3);
    say_request(&t, 0, NBD_CMD_READ, 0x0102030405060708, 20, 1);
    hear_simple(&t, 0, 0x0102030405060708);
    put_pattern(&t.heard, 20, 1);
    hear_simple(&t, 0, 0xffffffffffffffff);
    hear_simple(&t, 0, 0);
    hear_simple(&t, 0, 0x0102030405060708);
    put_pattern(&t.heard, 10, 2);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_41_structured_errors(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.answers.error = EIO;
    t.answers.message = "the disk said no";
    talk_transmission(&t, DISK, true);
    say_request(&t, 0, NBD_CMD_READ, 1, 0, 512);
    hear_error_chunk(&t, NBD_EIO, 1, "the disk said no");
    say_write(&t, 0, 2, 0, 512);
    hear_error_chunk(&t, NBD_EIO, 2, "the disk said no");
    // Errors of a READ that are found at once, too.
    say_request(&t, 0, NBD_CMD_READ, 3, 1 << 20, 1);
    hear_error_chunk(&t, NBD_EINVAL, 3, beyond);
    t.end = SESSION_REQUEST;
    talk_check(&t);

    // The session has texts of its own, and cuts those of its owner.
    static char endless[5000];
    memset(endless, 'e', sizeof(endless) - 1);
    static char cut[256];
    memset(cut, 'e', sizeof(cut) - 1);
    talk_init(&t);
    t.answers.error = EIO;
    talk_transmission(&t, DISK, true);
    say_request(&t, 0, NBD_CMD_READ, 1, 0, 512);
    hear_error_chunk(&t, NBD_EIO, 1, "input/output error");
    t.end = SESSION_REQUEST;
    talk_check(&t);
    talk_init(&t);
    t.answers.error = EIO;
    t.answers.message = endless;
    talk_transmission(&t, DISK, true);
    say_request(&t, 0, NBD_CMD_READ, 1, 0, 512);
    hear_error_chunk(&t, NBD_EIO, 1, cut);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_42_fua_on_all_commands(void **state)
{
    (void)state;
    static const uint16_t commands[] = {NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_CACHE,
                                        NBD_CMD_WRITE_ZEROES};
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, false);
    for (size_t i = 0; i < 5; i++) {
        uint32_t length = commands[i] == NBD_CMD_FLUSH ? 0 : 8;
        say_request(&t, NBD_CMD_FLAG_FUA, commands[i], i, 0, length);
        hear_simple(&t, 0, i);
        if (commands[i] == NBD_CMD_READ)
            put_pattern(&t.heard, 0, length);
        see_request(&t, commands[i], NBD_CMD_FLAG_FUA, 0, length);
    }
    say_write(&t, NBD_CMD_FLAG_FUA, 9, 512, 9);
    hear_simple(&t, 0, 9);
    see_request(&t, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 512, 9);
    t.end = SESSION_REQUEST;
    talk_check(&t);

    talk_init(&t);
    t.answers.extents = &(const struct session_status_extent){.length = 512};
    t.answers.extent_count = 1;
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", false);
    talk_go(&t, DISK, DISK->flags | NBD_FLAG_SEND_DF);
    say_request(&t, NBD_CMD_FLAG_FUA, NBD_CMD_BLOCK_STATUS, 1, 0, 512);
    hear_chunk(&t, 1, NBD_REPLY_TYPE_BLOCK_STATUS, 1, 12);
    put_u32(&t.heard, 1);
    put_u32(&t.heard, 512);
    put_u32(&t.heard, 0);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_42_flush_ignores_reserved_fields(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, false);
    say_request(&t, 0, NBD_CMD_FLUSH, 1, 0xffffffffffffffff, 0xffffffff);
    hear_simple(&t, 0, 1);
    see_request(&t, NBD_CMD_FLUSH, 0, 0, 0);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_43_simple_read_error_has_no_payload(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.answers.error = EIO;
    talk_transmission(&t, DISK, false);
    say_request(&t, 0, NBD_CMD_READ, 1, 0, 512);
    hear_simple(&t, NBD_EIO, 1);
    say_request(&t, 0, NBD_CMD_READ, 2, 0, 512);
    hear_simple(&t, NBD_EIO, 2);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_44_structured_read(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, true);
    say_request(&t, 0, NBD_CMD_READ, 1, 1000, 300);
    hear_data(&t, NBD_REPLY_FLAG_DONE, 1, 1000, 300);
    say_request(&t, 0, NBD_CMD_READ, 2, (1 << 20) - 1, 1);
    hear_data(&t, NBD_REPLY_FLAG_DONE, 2, (1 << 20) - 1, 1);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void check_parts(const struct session_read_part *parts, size_t count, uint16_t flags,
                        void (*hear)(struct talk *t))
{
    struct talk t;
    talk_init(&t);
    t.answers.parts = parts;
    t.answers.part_count = count;
    talk_transmission(&t, DISK, true);
    say_request(&t, flags, NBD_CMD_READ, 5, 4096, 2048);
    hear(&t);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void hear_data_hole_data(struct talk *t)
{
    hear_data(t, 0, 5, 4096, 1024);
    hear_hole(t, 0, 5, 5120, 512);
    hear_data(t, NBD_REPLY_FLAG_DONE, 5, 5632, 512);
}

static void hear_hole_data_hole(struct talk *t)
{
    hear_hole(t, 0, 5, 4096, 512);
    hear_data(t, 0, 5, 4608, 512);
    hear_hole(t, NBD_REPLY_FLAG_DONE, 5, 5120, 1024);
}

static void hear_one_hole(struct talk *t)
{
    hear_hole(t, NBD_REPLY_FLAG_DONE, 5, 4096, 2048);
}

static void hear_one_data(struct talk *t)
{
    hear_data(t, NBD_REPLY_FLAG_DONE, 5, 4096, 2048);
}

static const struct session_read_part data_hole_data[] = {
    {.length = 512}, {.length = 512}, {.length = 512, .hole = true}, {.length = 512}};
static const struct session_read_part hole_data_hole[] = {{.length = 512, .hole = true},
                                                          {.length = 512},
                                                          {.length = 512, .hole = true},
                                                          {.length = 512, .hole = true}};

static void row_44_holes(void **state)
{
    (void)state;
    static const struct session_read_part holes[] = {{.length = 1, .hole = true},
                                                     {.length = 2047, .hole = true}};
    static const struct session_read_part data[] = {{.length = 2047}, {.length = 1}};
    check_parts(data_hole_data, 4, 0, hear_data_hole_data);
    check_parts(hole_data_hole, 4, 0, hear_hole_data_hole);
    check_parts(holes, 2, 0, hear_one_hole);
    check_parts(data, 2, 0, hear_one_data);
}

// Data that is not in the buffer: a chunk may be put together from several places.
static void data_from_elsewhere(void **state)
{
    (void)state;
    struct bytes pattern = {0};
    put_pattern(&pattern, 4096, 2048);
    struct session_read_part parts[] = {
        {.length = 512, .data = pattern.data},        {.length = 256},
        {.length = 256, .data = pattern.data + 768},  {.length = 512, .hole = true},
        {.length = 200, .data = pattern.data + 1536}, {.length = 312, .data = pattern.data + 1736},
    };
    check_parts(parts, 6, 0, hear_data_hole_data);
    free(pattern.data);
}

static void row_45_do_not_fragment(void **state)
{
    (void)state;
    check_parts(data_hole_data, 4, NBD_CMD_FLAG_DF, hear_one_data);
    check_parts(hole_data_hole, 4, NBD_CMD_FLAG_DF, hear_one_data);

    // Only a flag that was offered.
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, false);
    say_request(&t, NBD_CMD_FLAG_DF, NBD_CMD_READ, 1, 0, 16);
    hear_simple(&t, NBD_EINVAL, 1);
    still_alive(&t);
    talk_check(&t);
}

static void row_45_do_not_fragment_65536(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, true);
    say_request(&t, NBD_CMD_FLAG_DF, NBD_CMD_READ, 1, 0, 65536);
    hear_data(&t, NBD_REPLY_FLAG_DONE, 1, 0, 65536);
    say_request(&t, NBD_CMD_FLAG_DF, NBD_CMD_READ, 2, 0, 1 << 20);
    hear_data(&t, NBD_REPLY_FLAG_DONE, 2, 0, 1 << 20);
    t.end = SESSION_REQUEST;
    talk_check_once(&t, 10000);
}

static void row_47_disconnect(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.answers.reverse = true; // all are answered after the disconnect
    talk_transmission(&t, DISK, false);
    say_request(&t, 0, NBD_CMD_READ, 1, 0, 5);
    say_request(&t, 0, NBD_CMD_FLUSH, 2, 0, 0);
    say_request(&t, 0, NBD_CMD_DISC, 3, 99, 99);
    hear_simple(&t, 0, 2);
    hear_simple(&t, 0, 1);
    put_pattern(&t.heard, 0, 5);
    // Bytes behind it are not looked at.
    put_text(&t.said, "good bye, whoever you are, and thanks for all the blocks");
    t.end = SESSION_DISCONNECT;
    talk_check(&t);
}

static void row_48_trim_and_cache(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, false);
    say_request(&t, 0, NBD_CMD_TRIM, 1, 1, 511);
    hear_simple(&t, 0, 1);
    see_request(&t, NBD_CMD_TRIM, 0, 1, 511);
    say_request(&t, 0, NBD_CMD_CACHE, 2, 0, 1 << 20);
    hear_simple(&t, 0, 2);
    see_request(&t, NBD_CMD_CACHE, 0, 0, 1 << 20);
    for (unsigned bit = 1; bit < 16; bit++) {
        say_request(&t, (uint16_t)(1u << bit), NBD_CMD_CACHE, bit, 0, 512);
        hear_simple(&t, NBD_EINVAL, bit);
    }
    still_alive(&t);
    talk_check(&t);
}

static void row_49_write_zeroes(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, false);
    uint16_t flags = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    say_request(&t, flags, NBD_CMD_WRITE_ZEROES, 1, 0, 1 << 20);
    hear_simple(&t, 0, 1);
    see_request(&t, NBD_CMD_WRITE_ZEROES, flags, 0, 1 << 20);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_49_enotsup_only_with_fast_zero(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.answers.error = ENOTSUP;
    talk_transmission(&t, DISK, false);
    say_request(&t, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 1, 0, 512);
    hear_simple(&t, NBD_ENOTSUP, 1);
    say_request(&t, 0, NBD_CMD_WRITE_ZEROES, 2, 0, 512);
    hear_simple(&t, NBD_EINVAL, 2);
    say_request(&t, 0, NBD_CMD_TRIM, 3, 0, 512);
    hear_simple(&t, NBD_EINVAL, 3);
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static const struct session_export *slow_zero_at(void *context, size_t index)
{
    (void)context;
    (void)index;
    static const struct session_export slow = {
        .name = "slow",
        .size = 4096,
        .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FLUSH,
        .block_min = 1,
        .block_preferred = 4096,
        .block_max = 32 << 20,
    };
    return &slow;
}

static void row_49_fast_zero_not_advertised(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.host.export_at = slow_zero_at;
    talk_transmission(&t, slow_zero_at(NULL, 0), true);
    say_request(&t, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 1, 0, 512);
    hear_error_chunk(&t, NBD_EINVAL, 1, bad_flag);
    still_alive(&t);
    talk_check(&t);
}

#define EXTENT(bytes, state)                                                                       \
    {                                                                                              \
        .length = (bytes), .flags = (state)                                                        \
    }

// ---- BLOCK_STATUS -------------------------------------------------------------------------------

// Asks once for the status of a range; the answer has the count descriptors, length and flags each.
static void check_status(const struct session_export *export, uint16_t flags, uint64_t offset,
                         uint32_t length, const struct session_status_extent *extents,
                         size_t extent_count, const struct session_status_extent *heard,
                         size_t count)
{
    struct talk t;
    talk_init(&t);
    t.answers.extents = extents;
    t.answers.extent_count = extent_count;
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, export->name, false);
    talk_go(&t, export, export->flags | NBD_FLAG_SEND_DF);
    say_request(&t, flags, NBD_CMD_BLOCK_STATUS, 6, offset, length);
    if (count > 0) {
        hear_chunk(&t, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, 6,
                   (uint32_t)(4 + 8 * count));
        put_u32(&t.heard, 1);
    } else {
        hear_error_chunk(&t, NBD_EIO, 6, "no status is known");
    }
    for (size_t i = 0; i < count; i++) {
        put_u32(&t.heard, (uint32_t)heard[i].length);
        put_u32(&t.heard, heard[i].flags);
    }
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_50_block_status(void **state)
{
    (void)state;
    static const struct session_status_extent extents[] = {EXTENT(4096, 0), EXTENT(512, 0),
                                                           EXTENT(1024, 3), EXTENT(512, 3),
                                                           EXTENT(512, 2),  EXTENT(1ull << 40, 0)};
    static const struct session_status_extent merged[] = {EXTENT(4608, 0), EXTENT(1536, 3),
                                                          EXTENT(512, 2), EXTENT(1536, 0)};
    check_status(DISK, 0, 512, 8192, extents, 6, merged, 4);
    // They may end early.
    check_status(DISK, 0, 512, 8192, extents, 5, merged, 3);
    // One, and no more than was asked for.
    check_status(DISK, NBD_CMD_FLAG_REQ_ONE, 0, 8192, extents, 6, merged, 1);
    static const struct session_status_extent asked[] = {EXTENT(1000, 0)};
    check_status(DISK, NBD_CMD_FLAG_REQ_ONE, 0, 1000, extents, 6, asked, 1);
    // The end falls on the end of an extent.
    check_status(DISK, 0, 0, 4608, extents, 6, merged, 1);
    // An answer without extents is an error, not an empty chunk.
    static const struct session_status_extent empty[] = {EXTENT(0, 1)};
    check_status(DISK, 0, 0, 4608, empty, 1, NULL, 0);
}

static void row_50_empty_extents_between(void **state)
{
    (void)state;
    static const struct session_status_extent extents[] = {EXTENT(0, 3), EXTENT(512, 1),
                                                           EXTENT(0, 2), EXTENT(512, 1)};
    static const struct session_status_extent heard[] = {EXTENT(1024, 1)};
    check_status(DISK, 0, 0, 8192, extents, 4, heard, 1);
}

static void row_50_extents_near_4_gib(void **state)
{
    (void)state;
    const struct session_status_extent huge[] = {EXTENT(1ull << 40, 1)};
    const struct session_status_extent cut[] = {EXTENT(0xffff0000, 1)};
    check_status(PLAIN, 0, 0, 0xffffffff, huge, 1, cut, 1);
    check_status(PLAIN, NBD_CMD_FLAG_REQ_ONE, 0, 0xffffffff, huge, 1, cut, 1);
    check_status(PLAIN, 0, 512, 0xfffffe00, huge, 1, cut, 1);
    check_status(PLAIN, 0, 0, 0xffff0000, huge, 1, cut, 1);
    const struct session_status_extent below[] = {EXTENT(0xfffefe00, 1)};
    check_status(PLAIN, 0, 0, 0xfffefe00, huge, 1, below, 1);
    // Many that sum to more, without one that is empty or overflows.
    const struct session_status_extent pieces[] = {EXTENT(0xfffff000, 1), EXTENT(0x1000, 1),
                                                   EXTENT(0xfffffffffffffff0, 1), EXTENT(512, 2)};
    check_status(PLAIN, 0, 0, 0xffffffff, pieces, 4, cut, 1);
    const struct session_status_extent two[] = {EXTENT(0xffff0000, 1), EXTENT(0x10000, 0)};
    const struct session_status_extent two_heard[] = {EXTENT(0xffff0000, 1), EXTENT(0xffff, 0)};
    check_status(PLAIN, 0, 0, 0xffffffff, two, 2, two_heard, 2);
}

static void row_50_too_many_extents(void **state)
{
    (void)state;
    size_t count = 100000;
    struct session_status_extent *extents = calloc(count, sizeof(*extents));
    assert_non_null(extents);
    for (size_t i = 0; i < count; i++)
        extents[i] = (struct session_status_extent){.length = 1, .flags = i % 2};
    struct talk t;
    talk_init(&t);
    t.answers.extents = extents;
    t.answers.extent_count = count;
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", false);
    talk_go(&t, DISK, DISK->flags | NBD_FLAG_SEND_DF);
    say_request(&t, 0, NBD_CMD_BLOCK_STATUS, 6, 0, 1 << 20);
    hear_chunk(&t, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, 6, 4 + 8 * 65536);
    put_u32(&t.heard, 1);
    for (size_t i = 0; i < 65536; i++) {
        put_u32(&t.heard, 1);
        put_u32(&t.heard, i % 2);
    }
    t.end = SESSION_REQUEST;
    talk_check_once(&t, 3000);
    free(extents);
}

static void row_50_asking_for_nothing(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", false);
    talk_go(&t, DISK, DISK->flags | NBD_FLAG_SEND_DF);
    say_request(&t, 0, NBD_CMD_BLOCK_STATUS, 6, 0, 0);
    hear_error_chunk(&t, NBD_EINVAL, 6, "length is zero");
    still_alive(&t);
    talk_check(&t);
}

// ---- Lengths ------------------------------------------------------------------------------------

// A length of zero: success, from the first byte to the end of the export, and an error behind it.
static void row_52_zero_length(void **state)
{
    (void)state;
    static const struct {
        uint16_t command;
        uint32_t beyond;
    } rows[] = {{NBD_CMD_READ, NBD_EINVAL},
                {NBD_CMD_WRITE, NBD_ENOSPC},
                {NBD_CMD_TRIM, NBD_EINVAL},
                {NBD_CMD_CACHE, NBD_EINVAL},
                {NBD_CMD_WRITE_ZEROES, NBD_ENOSPC}};
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, false);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        say_request(&t, 0, rows[i].command, 3 * i, 77, 0);
        hear_simple(&t, 0, 3 * i);
        say_request(&t, 0, rows[i].command, 3 * i + 1, DISK->size, 0);
        hear_simple(&t, 0, 3 * i + 1);
        say_request(&t, 0, rows[i].command, 3 * i + 2, DISK->size + 1, 0);
        hear_simple(&t, rows[i].beyond, 3 * i + 2);
    }
    still_alive(&t);
    talk_check(&t);
}

// With structured replies a read is answered by a chunk, even without content.
static void row_52_zero_length_structured(void **state)
{
    (void)state;
    static const uint16_t flags[] = {0, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FUA};
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, true);
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        say_request(&t, flags[i], NBD_CMD_READ, i, i * (DISK->size / 2), 0);
        hear_chunk(&t, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, i, 0);
    }
    say_request(&t, 0, NBD_CMD_WRITE, 3, 77, 0);
    hear_simple(&t, 0, 3);
    say_request(&t, 0, NBD_CMD_READ, 4, DISK->size + 1, 0);
    hear_error_chunk(&t, NBD_EINVAL, 4, "the range ends beyond the export");
    still_alive(&t);
    talk_check(&t);
}

static void row_53_no_memory_for_a_payload(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    t.answers.no_memory = true;
    talk_transmission(&t, DISK, false);
    say_write(&t, 0, 1, 0, 600);
    hear_simple(&t, NBD_ENOMEM, 1);
    still_alive(&t);
    talk_check(&t);
}

static void row_55_payloads_up_to_32_mib(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, PLAIN, false);
    say_write(&t, 0, 1, 12345, 32 << 20);
    hear_simple(&t, 0, 1);
    see_request(&t, NBD_CMD_WRITE, 0, 12345, 32 << 20);
    say_request(&t, 0, NBD_CMD_READ, 2, 54321, 32 << 20);
    hear_simple(&t, 0, 2);
    put_pattern(&t.heard, 54321, 32 << 20);
    see_request(&t, NBD_CMD_READ, 0, 54321, 32 << 20);
    t.end = SESSION_REQUEST;
    talk_check_once(&t, 1 << 20);
}

static void row_55_larger_payloads(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, PLAIN, true);
    say_write(&t, 0, 1, 0, (32 << 20) + 1);
    hear_error_chunk(&t, NBD_EINVAL, 1, too_long);
    say_request(&t, 0, NBD_CMD_READ, 2, 0, (32 << 20) + 1);
    hear_error_chunk(&t, NBD_EINVAL, 2, too_long);
    say_request(&t, 0, NBD_CMD_READ, 3, 0, 0xffffffff);
    hear_error_chunk(&t, NBD_EINVAL, 3, too_long);
    say_request(&t, 0, NBD_CMD_READ, 4, 0, 1);
    hear_data(&t, NBD_REPLY_FLAG_DONE, 4, 0, 1);
    // This is a stream out of step.
    say_request(&t, 0, NBD_CMD_WRITE, 5, 0, 0xffffffff);
    t.end = SESSION_BAD;
    talk_check_once(&t, 1 << 20);
}

static void row_56_errors(void **state)
{
    (void)state;
    static const struct {
        int host;
        uint32_t wire;
    } errors[] = {
        {EPERM, 1},   {EACCES, 1},  {EROFS, 1},     {EIO, 5},         {ENOMEM, 12},
        {EINVAL, 22}, {ENOSPC, 28}, {EDQUOT, 28},   {EFBIG, 28},      {EOVERFLOW, 75},
        {ENXIO, 5},   {ESTALE, 5},  {ETIMEDOUT, 5}, {ESHUTDOWN, 108},
    };
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        struct talk t;
        talk_init(&t);
        t.answers.error = errors[i].host;
        talk_transmission(&t, DISK, false);
        say_request(&t, 0, NBD_CMD_FLUSH, 1, 0, 0);
        hear_simple(&t, errors[i].wire, 1);
        t.end = SESSION_REQUEST;
        talk_check(&t);
    }
}

static void row_57_beyond_the_end(void **state)
{
    (void)state;
    static const struct {
        uint16_t type;
        uint32_t error;
    } commands[] = {
        {NBD_CMD_READ, NBD_EINVAL},         {NBD_CMD_WRITE, NBD_ENOSPC}, {NBD_CMD_TRIM, NBD_EINVAL},
        {NBD_CMD_WRITE_ZEROES, NBD_ENOSPC}, {NBD_CMD_CACHE, NBD_EINVAL},
    };
    static const struct {
        uint64_t offset;
        uint32_t length;
    } ranges[] = {{(1 << 20) - 1, 2},      {1 << 20, 1},
                  {(1 << 20) + 1, 0},      {0xffffffffffffffff, 1},
                  {0xffffffffffffffff, 0}, {0xfffffffffffffff0, 32}};
    for (size_t c = 0; c < sizeof(commands) / sizeof(commands[0]); c++) {
        struct talk t;
        talk_init(&t);
        talk_transmission(&t, DISK, false);
        for (size_t r = 0; r < sizeof(ranges) / sizeof(ranges[0]); r++) {
            say_request(&t, 0, commands[c].type, r, ranges[r].offset, ranges[r].length);
            if (commands[c].type == NBD_CMD_WRITE)
                put_zeros(&t.said, ranges[r].length);
            hear_simple(&t, commands[c].error, r);
        }
        still_alive(&t);
        talk_check(&t);
    }
}

static void row_57_block_status_beyond_the_end(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_hello(&t);
    talk_structured(&t);
    talk_contexts(&t, "disk", false);
    talk_go(&t, DISK, DISK->flags | NBD_FLAG_SEND_DF);
    say_request(&t, 0, NBD_CMD_BLOCK_STATUS, 6, 1 << 20, 1);
    hear_error_chunk(&t, NBD_EINVAL, 6, beyond);
    still_alive(&t);
    talk_check(&t);
}

static void row_58_unknown_commands(void **state)
{
    (void)state;
    static const uint16_t unknown[] = {8, 9, 255, 256, 0x7fff, 0xffff};
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, true);
    for (size_t i = 0; i < 6; i++) {
        say_request(&t, 0, unknown[i], i, 0, 0xffffffff);
        hear_error_chunk(&t, NBD_EINVAL, i, "unknown command");
    }
    still_alive(&t);
    talk_check(&t);
}

// Every flag with every command: those of the specification pass, the others do not.
static void row_58_flags(void **state)
{
    (void)state;
    static const uint16_t admitted[] = {
        [NBD_CMD_READ] = 1 | 4, [NBD_CMD_WRITE] = 1, [NBD_CMD_FLUSH] = 1,
        [NBD_CMD_TRIM] = 1,     [NBD_CMD_CACHE] = 1, [NBD_CMD_WRITE_ZEROES] = 1 | 2 | 16,
    };
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, true);
    for (uint16_t type = 0; type < 7; type++) {
        for (unsigned bit = 0; bit < 16 && type != NBD_CMD_DISC; bit++) {
            uint16_t flags = (uint16_t)(1u << bit);
            uint32_t length = type == NBD_CMD_FLUSH ? 0 : 3;
            say_request(&t, flags, type, bit, 0, length);
            if (type == NBD_CMD_WRITE)
                put_pattern(&t.said, 0, length);
            if ((flags & ~admitted[type]) != 0) {
                hear_error_chunk(&t, NBD_EINVAL, bit, bad_flag);
                continue;
            }
            if (type == NBD_CMD_READ)
                hear_data(&t, NBD_REPLY_FLAG_DONE, bit, 0, length);
            else
                hear_simple(&t, 0, bit);
            see_request(&t, type, flags, 0, length);
        }
    }
    t.end = SESSION_REQUEST;
    talk_check(&t);
}

static void row_58_refused_payload_is_consumed(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, false);
    // Bytes of the payload that look like a request are none.
    say_request(&t, NBD_CMD_FLAG_DF, NBD_CMD_WRITE, 1, 0, 28);
    say_request(&t, 0, NBD_CMD_FLUSH, 2, 0, 0);
    hear_simple(&t, NBD_EINVAL, 1);
    still_alive(&t);
    talk_check(&t);
}

// ---- Bounds -------------------------------------------------------------------------------------

// A client that sends bad requests and takes no answer is not read from any more.
static void requests_wait_while_output_is_unsent(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, true);
    size_t count = 50000;
    for (size_t i = 0; i < count; i++) {
        say_request(&t, 0, 99, i, 0, 0);
        hear_error_chunk(&t, NBD_EINVAL, i, "unknown command");
    }
    struct session *s = session_new(&t.host);
    assert_non_null(s);
    size_t given = 0;
    struct iovec iov[2];
    while (session_input(s, iov) > 0) {
        struct session_request request;
        size_t n = t.said.length - given < iov[0].iov_len ? t.said.length - given : iov[0].iov_len;
        assert_true(n > 0);
        memcpy(iov[0].iov_base, t.said.data + given, n);
        session_received(s, n);
        given += n;
        while (session_next(s, &request) != SESSION_MORE)
            assert_true(session_in_transmission(s));
    }
    assert_true(session_output_bytes(s) < 300000);

    struct bytes out = {0};
    struct bytes requests = {0};
    talk_play(s, &t.answers, t.said.data + given, t.said.length - given,
              (struct pace){.sip = 100000}, &out, &requests);
    assert_int_equal(out.length, t.heard.length);
    assert_memory_equal(out.data, t.heard.data, out.length);
    session_free(s);
    free(out.data);
    free(requests.data);
    free(t.said.data);
    free(t.heard.data);
}

// While a payload is received, one receive call takes the rest of it and the bytes behind it.
static void payload_and_next_request_in_one_receive(void **state)
{
    (void)state;
    struct talk t;
    talk_init(&t);
    talk_transmission(&t, DISK, false);
    say_request(&t, 0, NBD_CMD_WRITE, 1, 0, 100);
    put_pattern(&t.said, 0, 1);
    struct session *s = session_new(&t.host);
    struct session_request request;
    struct iovec iov[2];
    assert_int_equal(session_next(s, &request), SESSION_MORE);
    assert_int_equal(session_input(s, iov), 1);
    memcpy(iov[0].iov_base, t.said.data, t.said.length);
    session_received(s, t.said.length);
    assert_int_equal(session_next(s, &request), SESSION_NEGOTIATED);
    assert_ptr_equal(session_chosen(s), DISK);
    assert_int_equal(session_next(s, &request), SESSION_PAYLOAD);
    assert_int_equal(request.length, 100);
    // Nothing is received until there is a place for it.
    assert_int_equal(session_input(s, iov), 0);
    assert_int_equal(session_next(s, &request), SESSION_MORE);
    uint8_t payload[100] = {0};
    session_payload(s, payload);
    assert_int_equal(session_next(s, &request), SESSION_MORE);
    assert_int_equal(session_input(s, iov), 2);
    assert_ptr_equal(iov[0].iov_base, payload + 1);
    assert_int_equal(iov[0].iov_len, 99);
    assert_true(iov[1].iov_len >= 64 << 10);
    memset(payload + 1, 'p', 99);
    struct bytes next = {0};
    struct bytes *said = &next;
    put_u32(said, NBD_REQUEST_MAGIC);
    put_u32(said, NBD_CMD_FLUSH);
    put_zeros(said, 20);
    memcpy(iov[1].iov_base, next.data, next.length);
    session_received(s, 99 + next.length);
    assert_int_equal(session_next(s, &request), SESSION_REQUEST);
    assert_ptr_equal(request.payload, payload);
    assert_int_equal(payload[0], 0);
    assert_int_equal(payload[99], 'p');
    assert_int_equal(session_next(s, &request), SESSION_REQUEST);
    assert_int_equal(request.type, NBD_CMD_FLUSH);
    assert_int_equal(session_next(s, &request), SESSION_MORE);
    session_free(s);
    free(next.data);
    free(t.said.data);
    free(t.heard.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_36_read_only),
        cmocka_unit_test(row_38_what_was_not_advertised),
        cmocka_unit_test(row_39_request_without_magic),
        cmocka_unit_test(row_40_cookies_and_order),
        cmocka_unit_test(row_41_structured_errors),
        cmocka_unit_test(row_42_fua_on_all_commands),
        cmocka_unit_test(row_42_flush_ignores_reserved_fields),
        cmocka_unit_test(row_43_simple_read_error_has_no_payload),
        cmocka_unit_test(row_44_structured_read),
        cmocka_unit_test(row_44_holes),
        cmocka_unit_test(data_from_elsewhere),
        cmocka_unit_test(row_45_do_not_fragment),
        cmocka_unit_test(row_45_do_not_fragment_65536),
        cmocka_unit_test(row_47_disconnect),
        cmocka_unit_test(row_48_trim_and_cache),
        cmocka_unit_test(row_49_write_zeroes),
        cmocka_unit_test(row_49_enotsup_only_with_fast_zero),
        cmocka_unit_test(row_49_fast_zero_not_advertised),
        cmocka_unit_test(row_50_block_status),
        cmocka_unit_test(row_50_empty_extents_between),
        cmocka_unit_test(row_50_extents_near_4_gib),
        cmocka_unit_test(row_50_too_many_extents),
        cmocka_unit_test(row_50_asking_for_nothing),
        cmocka_unit_test(row_52_zero_length),
        cmocka_unit_test(row_52_zero_length_structured),
        cmocka_unit_test(row_53_no_memory_for_a_payload),
        cmocka_unit_test(row_55_payloads_up_to_32_mib),
        cmocka_unit_test(row_55_larger_payloads),
        cmocka_unit_test(row_56_errors),
        cmocka_unit_test(row_57_beyond_the_end),
        cmocka_unit_test(row_57_block_status_beyond_the_end),
        cmocka_unit_test(row_58_unknown_commands),
        cmocka_unit_test(row_58_flags),
        cmocka_unit_test(row_58_refused_payload_is_consumed),
        cmocka_unit_test(requests_wait_while_output_is_unsent),
        cmocka_unit_test(payload_and_next_request_in_one_receive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
