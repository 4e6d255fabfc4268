// SPDX-License-Identifier: Apache-2.0
// test_header.c: tables of good and bad headers for qcow2/format/header.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/format/format.h"
#include "qcow2/format/header.h"

#define CLUSTER_BITS 16
#define CLUSTER (1u << CLUSTER_BITS)

// A sound version 3 header of a 1 GiB disk.
static void sound(uint8_t *p)
{
    memset(p, 0, CLUSTER);
    format_put32(p + FORMAT_HEADER_MAGIC, FORMAT_MAGIC);
    format_put32(p + FORMAT_HEADER_VERSION, 3);
    format_put32(p + FORMAT_HEADER_CLUSTER_BITS, CLUSTER_BITS);
    format_put64(p + FORMAT_HEADER_SIZE, 1ull << 30);
    format_put32(p + FORMAT_HEADER_L1_SIZE, 2);
    format_put64(p + FORMAT_HEADER_L1_OFFSET, 3 * CLUSTER);
    format_put64(p + FORMAT_HEADER_REFCOUNT_TABLE_OFFSET, CLUSTER);
    format_put32(p + FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS, 1);
    format_put32(p + FORMAT_HEADER_REFCOUNT_ORDER, 4);
    format_put32(p + FORMAT_HEADER_LENGTH, FORMAT_HEADER_V3_BYTES);
}

// Appends an extension at pos; returns where the next one goes.
static size_t put_extension(uint8_t *p, size_t pos, uint32_t type, const void *data,
                            uint32_t length)
{
    format_put32(p + pos, type);
    format_put32(p + pos + 4, length);
    if (length > 0)
        memcpy(p + pos + 8, data, length);
    return pos + 8 + ((length + 7) & ~7u);
}

struct field_case {
    unsigned offset;
    unsigned bytes; // 1, 4 or 8
    uint64_t value;
    int result;
    const char *says; // part of the message; NULL for a sound header
};

static void fields_are_checked(void **state)
{
    static const struct field_case cases[] = {
        {FORMAT_HEADER_MAGIC, 4, 0x514649fa, -EINVAL, "not a qcow2 image"},
        {FORMAT_HEADER_VERSION, 4, 1, -ENOTSUP, "version 1"},
        {FORMAT_HEADER_VERSION, 4, 4, -ENOTSUP, "version 4"},
        {FORMAT_HEADER_CLUSTER_BITS, 4, 8, -EINVAL, "cluster size"},
        {FORMAT_HEADER_CLUSTER_BITS, 4, 22, -EINVAL, "cluster size"},
        {FORMAT_HEADER_CLUSTER_BITS, 4, UINT32_MAX, -EINVAL, "cluster size"},
        {FORMAT_HEADER_CLUSTER_BITS, 4, 21, -EINVAL, "cut off"}, // more than what was read
        {FORMAT_HEADER_SIZE, 8, 1ull << 30, 0, NULL},
        {FORMAT_HEADER_SIZE, 8, (1ull << 30) + 1, -EINVAL, "L1 table is too small"},
        {FORMAT_HEADER_SIZE, 8, UINT64_MAX, -EINVAL, "L1 table is too small"},
        {FORMAT_HEADER_SIZE, 8, 0, 0, NULL},
        {FORMAT_HEADER_SIZE, 8, 12345, 0, NULL},
        {FORMAT_HEADER_CRYPT_METHOD, 4, 2, 0, NULL}, // for header_check_features to refuse
        {FORMAT_HEADER_CRYPT_METHOD, 4, 3, -EINVAL, "encryption"},
        {FORMAT_HEADER_L1_SIZE, 4, 1, -EINVAL, "L1 table is too small"},
        {FORMAT_HEADER_L1_SIZE, 4, 4u << 20, 0, NULL},
        {FORMAT_HEADER_L1_SIZE, 4, (4u << 20) + 1, -EINVAL, "32 MiB"},
        {FORMAT_HEADER_L1_SIZE, 4, UINT32_MAX, -EINVAL, "32 MiB"},
        {FORMAT_HEADER_L1_OFFSET, 8, 0, -EINVAL, "L1 table"},
        {FORMAT_HEADER_L1_OFFSET, 8, 3 * CLUSTER + 512, -EINVAL, "L1 table"},
        {FORMAT_HEADER_L1_OFFSET, 8, HEADER_OFFSET_LIMIT, -EINVAL, "L1 table"},
        {FORMAT_HEADER_L1_OFFSET, 8, HEADER_OFFSET_LIMIT - CLUSTER, 0, NULL},
        {FORMAT_HEADER_L1_OFFSET, 8, UINT64_MAX - CLUSTER + 1, -EINVAL, "L1 table"},
        {FORMAT_HEADER_REFCOUNT_TABLE_OFFSET, 8, 0, -EINVAL, "refcount table"},
        {FORMAT_HEADER_REFCOUNT_TABLE_OFFSET, 8, CLUSTER + 8, -EINVAL, "refcount table"},
        {FORMAT_HEADER_REFCOUNT_TABLE_OFFSET, 8, HEADER_OFFSET_LIMIT, -EINVAL, "refcount table"},
        {FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS, 4, 128, 0, NULL},
        {FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS, 4, 129, -EINVAL, "8 MiB"},
        {FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS, 4, UINT32_MAX, -EINVAL, "8 MiB"},
        {FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS, 4, 0, 0, NULL}, // refused by header_read only
        {FORMAT_HEADER_SNAPSHOT_COUNT, 4, 1, -EINVAL, "snapshot table"},
        {FORMAT_HEADER_SNAPSHOT_COUNT, 4, 65537, -EINVAL, "65536"},
        {FORMAT_HEADER_SNAPSHOT_OFFSET, 8, 1, -EINVAL, "snapshot table"},
        {FORMAT_HEADER_BACKING_OFFSET, 8, CLUSTER + 1, -EINVAL, "outside of the first cluster"},
        {FORMAT_HEADER_BACKING_OFFSET, 8, UINT64_MAX, -EINVAL, "outside of the first cluster"},
        {FORMAT_HEADER_BACKING_LENGTH, 4, UINT32_MAX, 0, NULL}, // no backing file
        {FORMAT_HEADER_REFCOUNT_ORDER, 4, 6, 0, NULL},
        {FORMAT_HEADER_REFCOUNT_ORDER, 4, 7, -EINVAL, "64 bits"},
        {FORMAT_HEADER_LENGTH, 4, 103, -EINVAL, "too small"},
        {FORMAT_HEADER_LENGTH, 4, 104, 0, NULL},
        {FORMAT_HEADER_LENGTH, 4, CLUSTER, 0, NULL},
        {FORMAT_HEADER_LENGTH, 4, CLUSTER + 8, -EINVAL, "exceeds"},
        {FORMAT_HEADER_LENGTH, 4, UINT32_MAX, -EINVAL, "exceeds"},
        {FORMAT_HEADER_COMPRESSION_TYPE, 1, 1, -EINVAL, "disagree"},
        {FORMAT_HEADER_INCOMPATIBLE, 8, HEADER_INCOMPATIBLE_COMPRESSION, -EINVAL, "disagree"},
        {FORMAT_HEADER_INCOMPATIBLE, 8, 1ull << 63, 0, NULL},
        {FORMAT_HEADER_COMPATIBLE, 8, UINT64_MAX, 0, NULL},
        {FORMAT_HEADER_AUTOCLEAR, 8, UINT64_MAX, 0, NULL},
    };
    uint8_t *p = malloc(CLUSTER);

    (void)state;
    assert_non_null(p);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct field_case *c = &cases[i];
        struct header h;
        struct error err = {.text = ""};

        sound(p);
        if (c->bytes == 1)
            p[c->offset] = (uint8_t)c->value;
        else if (c->bytes == 4)
            format_put32(p + c->offset, (uint32_t)c->value);
        else
            format_put64(p + c->offset, c->value);
        int ret = header_decode(p, CLUSTER, "name", &h, &err);
        if (ret != c->result || (c->says != NULL && strstr(err.text, c->says) == NULL))
            fail_msg("field %u value %#llx: %d, %s", c->offset, (unsigned long long)c->value, ret,
                     err.text);
        if (ret < 0)
            assert_non_null(strstr(err.text, "'name': "));
    }
    free(p);
}

static void version_2_has_its_own_defaults(void **state)
{
    uint8_t *p = malloc(CLUSTER);
    struct header h;
    struct error err;

    (void)state;
    sound(p);
    format_put32(p + FORMAT_HEADER_VERSION, 2);
    // The bytes of version 3's further fields are the beginning of the extensions in version 2.
    memset(p + FORMAT_HEADER_INCOMPATIBLE, 0, 40);
    assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err), 0);
    assert_int_equal(h.version, 2);
    assert_int_equal(h.refcount_order, 4);
    assert_int_equal(h.header_length, 72);
    assert_int_equal(h.incompatible, 0);
    assert_int_equal(h.extension_count, 0);
    free(p);
}

static void extensions_are_decoded(void **state)
{
    uint8_t *p = malloc(CLUSTER);
    struct header h;
    struct error err;

    (void)state;
    sound(p);
    size_t pos =
        put_extension(p, FORMAT_HEADER_V3_BYTES, FORMAT_EXTENSION_BACKING_FORMAT, "raw", 3);
    size_t unknown = pos;
    pos = put_extension(p, pos, 0x12345678, "abcdefghi", 9);
    pos = put_extension(p, pos, FORMAT_EXTENSION_END, NULL, 0);
    memcpy(p + pos, "base", 4);
    format_put64(p + FORMAT_HEADER_BACKING_OFFSET, pos);
    format_put32(p + FORMAT_HEADER_BACKING_LENGTH, 4);
    assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err), 0);
    assert_string_equal(h.backing_format, "raw");
    assert_string_equal(h.backing_name, "base");
    assert_int_equal(h.extension_count, 2);
    assert_int_equal(h.extensions[1].type, 0x12345678);
    assert_int_equal(h.extensions[1].length, 9);
    assert_int_equal(h.extensions[1].offset, unknown + 8);
    free(p);
}

static void extensions_stay_inside(void **state)
{
    uint8_t *p = malloc(CLUSTER);
    struct header h;
    struct error err;

    (void)state;
    // Longer than what is left of the cluster, and so long that adding it would wrap around.
    static const uint32_t lengths[] = {CLUSTER - FORMAT_HEADER_V3_BYTES - 7, UINT32_MAX - 3,
                                       UINT32_MAX};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        sound(p);
        format_put32(p + FORMAT_HEADER_V3_BYTES, 0x1234);
        format_put32(p + FORMAT_HEADER_V3_BYTES + 4, lengths[i]);
        assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err), -EINVAL);
    }
    // The last one that fits.
    sound(p);
    format_put32(p + FORMAT_HEADER_V3_BYTES, 0x1234);
    format_put32(p + FORMAT_HEADER_V3_BYTES + 4, CLUSTER - FORMAT_HEADER_V3_BYTES - 8);
    assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err), 0);
    // One that reaches into the backing file name.
    sound(p);
    put_extension(p, FORMAT_HEADER_V3_BYTES, 0x1234, "12345678", 8);
    format_put64(p + FORMAT_HEADER_BACKING_OFFSET, FORMAT_HEADER_V3_BYTES + 12);
    format_put32(p + FORMAT_HEADER_BACKING_LENGTH, 4);
    assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err), -EINVAL);
    // The largest allowed number of extensions, and one more.
    for (size_t n = HEADER_EXTENSIONS_MAX; n <= HEADER_EXTENSIONS_MAX + 1; n++) {
        size_t pos = FORMAT_HEADER_V3_BYTES;
        sound(p);
        for (size_t i = 0; i < n; i++)
            pos = put_extension(p, pos, 0x1234, NULL, 0);
        assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err),
                         n > HEADER_EXTENSIONS_MAX ? -EINVAL : 0);
    }
    // A backing format that is too long to keep.
    char format[64];
    memset(format, 'f', sizeof(format));
    sound(p);
    put_extension(p, FORMAT_HEADER_V3_BYTES, FORMAT_EXTENSION_BACKING_FORMAT, format, 64);
    assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err), -EINVAL);
    put_extension(p, FORMAT_HEADER_V3_BYTES, FORMAT_EXTENSION_BACKING_FORMAT, format, 63);
    assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err), 0);
    assert_int_equal(strlen(h.backing_format), 63);
    free(p);
}

static void backing_names_stay_inside(void **state)
{
    static const struct {
        uint64_t offset;
        uint32_t length;
        int result;
    } cases[] = {
        {CLUSTER - 1023, 1023, 0},   {CLUSTER - 1023, 1024, -EINVAL},
        {CLUSTER - 10, 11, -EINVAL}, {CLUSTER, 0, 0},
        {CLUSTER, 1, -EINVAL},       {CLUSTER - 4, UINT32_MAX, -EINVAL},
    };
    uint8_t *p = malloc(CLUSTER);

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct header h;
        struct error err;

        sound(p);
        memset(p + CLUSTER - 1023, 'n', 1023);
        format_put64(p + FORMAT_HEADER_BACKING_OFFSET, cases[i].offset);
        format_put32(p + FORMAT_HEADER_BACKING_LENGTH, cases[i].length);
        assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err), cases[i].result);
        if (cases[i].result == 0)
            assert_int_equal(strlen(h.backing_name), cases[i].length);
    }
    free(p);
}

static void unsupported_features_are_named(void **state)
{
    static const struct {
        uint64_t incompatible;
        uint32_t crypt;
        uint8_t compression;
        const char *says; // NULL: supported
    } cases[] = {
        {0, 0, 0, NULL},
        {HEADER_INCOMPATIBLE_DIRTY | HEADER_INCOMPATIBLE_CORRUPT, 0, 0, NULL},
        {HEADER_INCOMPATIBLE_DATA_FILE, 0, 0, "external data file"},
        {HEADER_INCOMPATIBLE_EXTENDED_L2, 0, 0, "extended L2 entries"},
        {HEADER_INCOMPATIBLE_COMPRESSION, 0, 1, NULL},
        {HEADER_INCOMPATIBLE_COMPRESSION, 0, 9, "compression type 9"},
        {0, 1, 0, "AES encryption"},
        {0, 2, 0, "LUKS encryption"},
        {1ull << 40, 0, 0, "time travel?[2J"}, // from the image's table, without its escape
        {1ull << 41, 0, 0, "incompatible feature bit 41"},
        {1ull << 41 | HEADER_INCOMPATIBLE_DATA_FILE, 0, 0,
         "external data file, incompatible feature bit 41"},
    };
    uint8_t *p = malloc(CLUSTER);
    uint8_t names[FORMAT_FEATURE_NAME_BYTES] = {FORMAT_FEATURE_INCOMPATIBLE, 40};

    (void)state;
    memcpy(names + 2, "time travel\033[2J", 15);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct header h;
        struct error err = {.text = ""};

        sound(p);
        put_extension(p, FORMAT_HEADER_V3_BYTES, FORMAT_EXTENSION_FEATURE_NAMES, names,
                      sizeof(names));
        format_put64(p + FORMAT_HEADER_INCOMPATIBLE, cases[i].incompatible);
        format_put32(p + FORMAT_HEADER_L1_SIZE, 4); // extended L2 tables map half as much
        format_put32(p + FORMAT_HEADER_CRYPT_METHOD, cases[i].crypt);
        p[FORMAT_HEADER_COMPRESSION_TYPE] = cases[i].compression;
        assert_int_equal(header_decode(p, CLUSTER, "name", &h, &err), 0);
        int ret = header_check_features(p, CLUSTER, "name", &h, &err);
        assert_int_equal(ret, cases[i].says == NULL ? 0 : -ENOTSUP);
        if (cases[i].says != NULL && strstr(err.text, cases[i].says) == NULL)
            fail_msg("case %zu: %s", i, err.text);
    }
    free(p);
}

static void what_is_encoded_is_decoded(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        for (uint32_t bits = HEADER_CLUSTER_BITS_MIN; bits <= 12; bits++) {
            struct header in = {.version = version,
                                .cluster_bits = bits,
                                .size = 4096,
                                .l1_size = 32,
                                .l1_offset = 3ull << bits,
                                .refcount_table_offset = 1ull << bits,
                                .refcount_table_clusters = 1,
                                .compatible = version - 2,
                                .refcount_order = 4,
                                .backing_name = "a/base.raw",
                                .backing_format = "raw"};
            uint8_t cluster[4096] = {0};
            struct header out;
            struct error err;

            assert_int_equal(header_encode(&in, cluster, 1u << bits), 0);
            assert_int_equal(header_decode(cluster, 1u << bits, "name", &out, &err), 0);
            assert_int_equal(out.version, version);
            assert_int_equal(out.size, in.size);
            assert_int_equal(out.l1_offset, in.l1_offset);
            assert_int_equal(out.compatible, in.compatible);
            assert_string_equal(out.backing_name, in.backing_name);
            assert_string_equal(out.backing_format, in.backing_format);
            // Backing format, and feature names where they fit.
            assert_int_equal(out.extension_count, version == 3 && bits > 9 ? 2 : 1);
        }
    }
}

static void names_that_do_not_fit_are_refused(void **state)
{
    struct header h = {.version = 3, .cluster_bits = 9, .refcount_order = 4};
    uint8_t cluster[512] = {0};

    (void)state;
    memset(h.backing_name, 'n', 512 - FORMAT_HEADER_V3_BYTES - FORMAT_EXTENSION_BYTES);
    assert_int_equal(header_encode(&h, cluster, sizeof(cluster)), 0);
    strcat(h.backing_name, "n");
    assert_int_equal(header_encode(&h, cluster, sizeof(cluster)), -ENOSPC);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_are_checked),
        cmocka_unit_test(version_2_has_its_own_defaults),
        cmocka_unit_test(extensions_are_decoded),
        cmocka_unit_test(extensions_stay_inside),
        cmocka_unit_test(backing_names_stay_inside),
        cmocka_unit_test(unsupported_features_are_named),
        cmocka_unit_test(what_is_encoded_is_decoded),
        cmocka_unit_test(names_that_do_not_fit_are_refused),
    };

    return cmocka_run_group_tests_name("header", tests, NULL, NULL);
}
