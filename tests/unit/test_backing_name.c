// SPDX-License-Identifier: Apache-2.0
// test_backing_name.c: names of backing files: local ones, and their paths.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "qcow2/format/backing_name.h"
#include "qcow2/image.h"

static void names_are_local_or_not(void **state)
{
    static const struct {
        const char *name;
        bool local;
    } cases[] = {
        {"base.qcow2", true},
        {"./a:b", true},
        {"/a:b", true},
        {"dir/a:b", true},
        {"file:base", true},
        {"file:/base", true},
        {"file:a:b", true},
        {"host_device:/dev/sda", true},
        {"", true},
        {"nbd:unix:/s", false},
        {"json:{}", false},
        {"http://host/x", false},
        {"a:b", false},
        {":", false},
        {"File:x", false},
        {"files:x", false},
        {"fat:file:x", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(backing_name_is_local(cases[i].name), cases[i].local);
    }
}

static void names_are_resolved(void **state)
{
    static const struct {
        const char *image, *name, *path;
    } cases[] = {
        {"top", "base", "base"},
        {"dir/top", "base", "dir/base"},
        {"dir/top", "/base", "/base"},
        {"/a/b/top", "../base", "/a/b/../base"},
        {"dir/top", "file:base", "dir/base"},
        {"dir/top", "file:/base", "/base"},
        {"dir/top", "host_device:/dev/x", "/dev/x"},
        {"file:dir/top", "base", "dir/base"},
        {"file:top", "file:base", "base"},
        {"dir/top", "./a:b", "dir/./a:b"},
        {"dir/top", "file:a:b", "dir/a:b"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *path = backing_name_resolve(cases[i].image, cases[i].name);

        assert_string_equal(path, cases[i].path);
        free(path);
    }
}

static void drivers_of_files_are_raw(void **state)
{
    (void)state;
    assert_int_equal(image_format_parse("qcow2"), IMAGE_FORMAT_QCOW2);
    assert_int_equal(image_format_parse("raw"), IMAGE_FORMAT_RAW);
    assert_int_equal(image_format_parse("file"), IMAGE_FORMAT_RAW);
    assert_int_equal(image_format_parse("host_device"), IMAGE_FORMAT_RAW);
    assert_int_equal(image_format_parse("vmdk"), IMAGE_FORMAT_UNKNOWN);
    assert_int_equal(image_format_parse(""), IMAGE_FORMAT_UNKNOWN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_local_or_not),
        cmocka_unit_test(names_are_resolved),
        cmocka_unit_test(drivers_of_files_are_raw),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
