// SPDX-License-Identifier: Apache-2.0
// test_inflate.c: compressed clusters, and data that is none.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <libdeflate.h>
#include <zstd.h>

#include "qcow2/format/format.h"
#include "qcow2/codec/inflate.h"

#define CLUSTER 65536u
#define ROOM (2 * CLUSTER)
#define SECTOR 512u

struct fixture {
    unsigned char plain[CLUSTER];
    unsigned char packed[ROOM];
    unsigned char bytes[CLUSTER];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    for (size_t i = 0; i < CLUSTER; i++)
        f->plain[i] = (unsigned char)(i * i >> 7);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    free(*state);
    return 0;
}

// Returns the bytes packed, at f->packed + at.
static size_t pack(struct fixture *f, uint8_t type, size_t at, const void *plain, size_t length)
{
    size_t n;

    if (type == FORMAT_COMPRESSION_ZLIB) {
        struct libdeflate_compressor *compressor = libdeflate_alloc_compressor(6);

        n = libdeflate_deflate_compress(compressor, plain, length, f->packed + at, ROOM - at);
        libdeflate_free_compressor(compressor);
        assert_true(n > 0);
    } else {
        n = ZSTD_compress(f->packed + at, ROOM - at, plain, length, 3);
        assert_false(ZSTD_isError(n));
    }
    return n;
}

static int inflate(struct fixture *f, uint8_t type, size_t packed_length)
{
    memset(f->bytes, 0xee, sizeof(f->bytes));
    return inflate_cluster(type, f->packed, packed_length, f->bytes, CLUSTER);
}

static const uint8_t types[] = {FORMAT_COMPRESSION_ZLIB, FORMAT_COMPRESSION_ZSTD};

// The descriptor counts sectors: bytes behind the data belong to other clusters.
static void anything_may_follow(void **state)
{
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof(types); i++) {
        size_t n = pack(f, types[i], 0, f->plain, CLUSTER);
        size_t sectors = (n / SECTOR + 2) * SECTOR;

        memset(f->packed + n, 0xa5, sectors - n);
        assert_int_equal(inflate(f, types[i], sectors), 0);
        assert_memory_equal(f->bytes, f->plain, CLUSTER);
        assert_int_equal(inflate(f, types[i], n), 0);
        assert_memory_equal(f->bytes, f->plain, CLUSTER);
    }
}

static void too_little_and_too_much_are_errors(void **state)
{
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof(types); i++) {
        unsigned char longer[CLUSTER + 1] = {0};
        size_t n = pack(f, types[i], 0, f->plain, CLUSTER - 1);

        assert_int_equal(inflate(f, types[i], n), -EIO);
        n = pack(f, types[i], 0, longer, sizeof(longer));
        assert_int_equal(inflate(f, types[i], n), -EIO);
        n = pack(f, types[i], 0, f->plain, CLUSTER);
        assert_int_equal(inflate(f, types[i], n - 1), -EIO);
        assert_int_equal(inflate(f, types[i], 0), -EIO);
    }
}

static void noise_is_an_error(void **state)
{
    struct fixture *f = *state;
    unsigned seed = 1;

    for (size_t i = 0; i < sizeof(types); i++) {
        for (int round = 0; round < 200; round++) {
            size_t n = pack(f, types[i], 0, f->plain, CLUSTER);

            for (int k = 0; k < 8; k++)
                f->packed[(size_t)rand_r(&seed) % n] = (unsigned char)rand_r(&seed);
            // Either result; the sanitizers watch memory accesses.
            int result = inflate(f, types[i], n);
            assert_true(result == 0 || result == -EIO);
        }
        memset(f->packed, 0xff, SECTOR);
        assert_int_equal(inflate(f, types[i], SECTOR), -EIO);
    }
    assert_int_equal(inflate(f, 2, SECTOR), -EIO);
}

static void zstd_may_come_in_frames(void **state)
{
    struct fixture *f = *state;
    size_t half = CLUSTER / 2;
    size_t n = pack(f, FORMAT_COMPRESSION_ZSTD, 0, f->plain, half);

    assert_int_equal(inflate(f, FORMAT_COMPRESSION_ZSTD, n), -EIO);
    n += pack(f, FORMAT_COMPRESSION_ZSTD, n, f->plain + half, half);
    assert_int_equal(inflate(f, FORMAT_COMPRESSION_ZSTD, n), 0);
    assert_memory_equal(f->bytes, f->plain, CLUSTER);
}

// A frame that asks for a window of many gigabytes, and empty frames without end.
static void zstd_frames_cannot_ask_for_memory_or_time(void **state)
{
    // Magic, no checksum and no content size, window of 2^41 bytes, one last raw block of a byte.
    static const unsigned char wide[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x09, 0x00, 0x00, 'x'};
    struct fixture *f = *state;
    size_t n = 0;

    memcpy(f->packed, wide, sizeof(wide));
    assert_int_equal(inflate(f, FORMAT_COMPRESSION_ZSTD, sizeof(wide)), -EIO);
    while (n < CLUSTER - 64)
        n += pack(f, FORMAT_COMPRESSION_ZSTD, n, f->plain, 0);
    assert_int_equal(inflate(f, FORMAT_COMPRESSION_ZSTD, n), -EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(anything_may_follow, set_up, tear_down),
        cmocka_unit_test_setup_teardown(too_little_and_too_much_are_errors, set_up, tear_down),
        cmocka_unit_test_setup_teardown(noise_is_an_error, set_up, tear_down),
        cmocka_unit_test_setup_teardown(zstd_may_come_in_frames, set_up, tear_down),
        cmocka_unit_test_setup_teardown(zstd_frames_cannot_ask_for_memory_or_time, set_up,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
