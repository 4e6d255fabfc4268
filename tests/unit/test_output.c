// SPDX-License-Identifier: Apache-2.0
// test_output.c: the output queue: order, references, reuse of its memory.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "protocol/output.h"

static unsigned released;

static void count_release(struct session_payload_ref *ref)
{
    assert_int_equal(ref->pieces, 0);
    released++;
}

static int start(void **state)
{
    (void)state;
    released = 0;
    return 0;
}

static void copy_in(struct output *out, const char *text)
{
    uint8_t *data = output_carve(out, strlen(text), 1);
    assert_non_null(data);
    memcpy(data, text, strlen(text));
    output_copied(out, data, strlen(text));
}

static void refer(struct output *out, const char *text, struct session_payload_ref *ref)
{
    uint8_t *header = output_carve(out, 1, 2);
    assert_non_null(header);
    *header = '>';
    output_copied(out, header, 1);
    output_payload(out, text, strlen(text), ref);
}

static void assert_output(const struct output *out, const char *expected)
{
    struct iovec iov[64];
    char text[256];
    size_t length = 0;
    int n = output_iovecs(out, iov, 64);
    for (int i = 0; i < n; i++) {
        assert_true(iov[i].iov_len > 0 && length + iov[i].iov_len < sizeof(text));
        memcpy(text + length, iov[i].iov_base, iov[i].iov_len);
        length += iov[i].iov_len;
    }
    text[length] = '\0';
    assert_string_equal(text, expected);
    assert_int_equal(out->bytes, length);
}

static void copied_bytes_are_one_iovec(void **state)
{
    (void)state;
    struct output out;
    struct iovec iov[4];
    assert_true(output_init(&out));
    assert_int_equal(output_iovecs(&out, iov, 4), 0);
    copy_in(&out, "one ");
    copy_in(&out, "two ");
    output_sent(&out, 2);
    copy_in(&out, "three");
    assert_int_equal(output_iovecs(&out, iov, 4), 1);
    assert_output(&out, "e two three");
    assert_int_equal(out.copied, 11);
    output_sent(&out, 11);
    assert_output(&out, "");
    copy_in(&out, "again");
    assert_output(&out, "again");
    output_free(&out);
}

static void references_are_released_once_sent(void **state)
{
    (void)state;
    struct output out;
    struct session_payload_ref a = {.release = count_release};
    struct session_payload_ref b = {.release = count_release};
    assert_true(output_init(&out));
    refer(&out, "payload", &a);
    refer(&out, "first", &b);
    refer(&out, "second", &b);
    assert_output(&out, ">payload>first>second");
    output_sent(&out, 7);
    assert_int_equal(released, 0);
    output_sent(&out, 1);
    assert_int_equal(released, 1);
    output_sent(&out, 6);
    assert_int_equal(released, 1);
    assert_output(&out, ">second");
    output_sent(&out, 7);
    assert_int_equal(released, 2);
    output_free(&out);
    assert_int_equal(released, 2);
}

static void a_reference_without_payload_waits_for_what_is_before_it(void **state)
{
    (void)state;
    struct output out;
    struct session_payload_ref a = {.release = count_release};
    assert_true(output_init(&out));
    refer(&out, "", &a);
    copy_in(&out, "behind");
    assert_output(&out, ">behind");
    assert_int_equal(released, 0);
    output_sent(&out, 1);
    assert_int_equal(released, 1);
    output_free(&out);
}

static void freeing_releases_what_is_left(void **state)
{
    (void)state;
    struct output out;
    struct session_payload_ref refs[3] = {
        {.release = count_release}, {.release = count_release}, {.release = count_release}};
    assert_true(output_init(&out));
    refer(&out, "half sent", &refs[0]);
    refer(&out, "in two", &refs[1]);
    refer(&out, "pieces", &refs[1]);
    output_sent(&out, 4);
    out.failed = true;
    assert_null(output_carve(&out, 1, 1));
    output_orphan(&out, &refs[2]);
    struct iovec iov[4];
    assert_int_equal(output_iovecs(&out, iov, 4), 0);
    output_free(&out);
    assert_int_equal(released, 3);
}

static void few_iovecs_give_the_front(void **state)
{
    (void)state;
    struct output out;
    struct iovec iov[3];
    struct session_payload_ref a = {.release = count_release};
    assert_true(output_init(&out));
    refer(&out, "abc", &a);
    refer(&out, "defg", &a);
    assert_int_equal(output_iovecs(&out, iov, 3), 3);
    assert_int_equal(iov[1].iov_len, 3);
    assert_int_equal(iov[2].iov_len, 1);
    output_free(&out);
}

// Far more than a block and than the ring begin with, filled and emptied at different paces.
static void memory_is_reused_in_order(void **state)
{
    (void)state;
    struct output out;
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz";
    struct session_payload_ref refs[256];
    uint32_t queued = 0;
    uint32_t read = 0;
    assert_true(output_init(&out));
    for (uint32_t round = 0; round < 3000; round++) {
        // 4-byte numbers in sequence, replies of up to 40 KiB of them.
        uint32_t numbers = round % 97 == 0 ? 10000 : round % 300 + 1;
        uint8_t *data = output_carve(&out, numbers * 4, 2);
        assert_non_null(data);
        for (uint32_t i = 0; i < numbers; i++)
            memcpy(data + i * 4, &(uint32_t){queued + i}, 4);
        output_copied(&out, data, numbers * 4);
        queued += numbers;
        struct session_payload_ref *ref = &refs[round % 256];
        *ref = (struct session_payload_ref){.release = count_release};
        output_payload(&out, letters, 4, ref);

        while (out.bytes > (round % 50) * 4000u) {
            struct iovec iov[16];
            int n = output_iovecs(&out, iov, 16);
            assert_true(n > 0);
            bool payload = memcmp(iov[0].iov_base, letters, 4) == 0;
            if (!payload) {
                uint32_t number;
                memcpy(&number, iov[0].iov_base, 4);
                assert_int_equal(number, read);
                read++;
            }
            output_sent(&out, 4);
        }
    }
    output_sent(&out, out.bytes);
    assert_int_equal(out.copied, 0);
    assert_int_equal(out.count, 0);
    assert_int_equal(released, 3000);
    output_free(&out);
}

static struct output *releasing_output;

static void reply_again(struct session_payload_ref *ref)
{
    (void)ref;
    released++;
    copy_in(releasing_output, "more");
}

static void a_release_function_may_queue(void **state)
{
    (void)state;
    struct output out;
    struct session_payload_ref refs[2] = {{.release = reply_again}, {.release = reply_again}};
    releasing_output = &out;
    assert_true(output_init(&out));
    refer(&out, "abc", &refs[0]);
    refer(&out, "def", &refs[1]);
    output_sent(&out, 6);
    assert_output(&out, "efmore");
    output_sent(&out, 3);
    assert_output(&out, "oremore");
    assert_int_equal(released, 2);
    output_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(copied_bytes_are_one_iovec, start),
        cmocka_unit_test_setup(references_are_released_once_sent, start),
        cmocka_unit_test_setup(a_reference_without_payload_waits_for_what_is_before_it, start),
        cmocka_unit_test_setup(freeing_releases_what_is_left, start),
        cmocka_unit_test_setup(few_iovecs_give_the_front, start),
        cmocka_unit_test_setup(memory_is_reused_in_order, start),
        cmocka_unit_test_setup(a_release_function_may_queue, start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
