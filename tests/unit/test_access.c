// SPDX-License-Identifier: Apache-2.0
// test_access.c: the exports that a client may use.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "server/access.h"

#define ALICE "CN=alice,O=Example,C=DE"
#define BOB "CN=bob,O=Example,C=DE"

static char names[][16] = {"root", "data", "data:old"};
static struct export list[] = {
    {.name = names[0], .session = {.name = names[0]}},
    {.name = names[1], .session = {.name = names[1]}},
    {.name = names[2], .session = {.name = names[2]}},
};
static struct exports exports = {.list = list, .count = 3};

// Asserts the names that a peer sees, each followed by a space.
static void assert_sees(const struct access *access, const char *identity, const char *expected)
{
    char seen[128] = "";
    struct access_view view;

    assert_int_equal(access_view_init(&view, access, SESSION_TLS_OPTIONAL), 0);
    assert_int_equal(view.host.tls, SESSION_TLS_OPTIONAL);
    assert_int_equal(access_view_identify(&view, identity), 0);
    for (size_t i = 0; i < view.host.export_count(view.host.context); i++) {
        strcat(strcat(seen, view.host.export_at(view.host.context, i)->name), " ");
    }
    assert_string_equal(seen, expected);
    access_view_destroy(&view);
}

static void without_rules_everyone_sees_all(void **state)
{
    struct access access;

    (void)state;
    assert_int_equal(access_init(&access, &exports, NULL, 0, NULL), 0);
    assert_sees(&access, NULL, "root data data:old ");
    assert_sees(&access, ALICE, "root data data:old ");
    access_destroy(&access);
}

static void a_rule_for_all_is_for_all(void **state)
{
    static const char *const rules[] = {"*CN=alice,*"};
    struct access access;
    struct error err;

    (void)state;
    assert_int_equal(access_init(&access, &exports, rules, 1, &err), 0);
    assert_sees(&access, NULL, "");
    assert_sees(&access, BOB, "");
    assert_sees(&access, "CN=alice", "");
    assert_sees(&access, ALICE, "root data data:old ");
    access_destroy(&access);
}

static void rules_of_an_export_add_up(void **state)
{
    static const char *const rules[] = {"data:CN=alice,*", "data:CN=bob,*", "data:old:CN=bob,*"};
    struct access access;
    struct error err;

    (void)state;
    assert_int_equal(access_init(&access, &exports, rules, 3, &err), 0);
    assert_sees(&access, NULL, "root ");
    assert_sees(&access, "CN=carol,O=Example,C=DE", "root ");
    assert_sees(&access, ALICE, "root data ");
    assert_sees(&access, BOB, "root data data:old ");
    access_destroy(&access);
}

static void a_rule_for_all_adds_to_those_of_an_export(void **state)
{
    static const char *const rules[] = {"data:CN=alice,*", "CN=bob,*"};
    struct access access;
    struct error err;

    (void)state;
    assert_int_equal(access_init(&access, &exports, rules, 2, &err), 0);
    assert_sees(&access, NULL, "");
    assert_sees(&access, ALICE, "data ");
    assert_sees(&access, BOB, "root data data:old ");
    access_destroy(&access);
}

// The text behind a name that is given by itself is a pattern, with any characters.
static void a_rule_for_a_name_given_by_itself(void **state)
{
    struct access access;
    struct error err;

    (void)state;
    assert_int_equal(access_init(&access, &exports, NULL, 0, &err), 0);
    assert_int_equal(access_add(&access, "data", "old:CN=bob", &err), 0);
    assert_int_equal(access_add(&access, "no such name", "*", &err), 0);
    assert_sees(&access, "old:CN=bob", "root data data:old ");
    assert_sees(&access, BOB, "root data:old ");
    assert_int_equal(access_add(&access, "data", "", &err), -EINVAL);
    access_destroy(&access);
}

static void a_view_follows_the_identity(void **state)
{
    static const char *const rules[] = {"data:alice"};
    struct access access;
    struct access_view view;
    struct error err;

    (void)state;
    assert_int_equal(access_init(&access, &exports, rules, 1, &err), 0);
    assert_int_equal(access_view_init(&view, &access, SESSION_TLS_REQUIRED), 0);
    assert_int_equal(view.host.export_count(view.host.context), 2);
    assert_int_equal(access_view_identify(&view, "alice"), 0);
    assert_int_equal(view.host.export_count(view.host.context), 3);
    assert_int_equal(access_view_identify(&view, "mallory"), 0);
    assert_int_equal(view.host.export_count(view.host.context), 2);
    assert_ptr_equal(view.host.export_at(view.host.context, 1), &list[2].session);
    access_view_destroy(&view);
    access_destroy(&access);
}

// Rules of an image that was left out are accepted and let no client into other exports. Its state
// is told only if there are no rules.
static void an_image_that_was_left_out(void **state)
{
    static const char *const rules[] = {"gone:CN=alice,*"};
    static char name[] = "gone", reason[] = "this image is not served";
    struct skipped_export skipped = {.name = name, .reason = reason};
    struct exports some = {
        .list = list, .count = 1, .skipped = &skipped, .skipped_count = 1, .first_skipped = true};
    struct access access;
    struct access_view view;
    struct error err;

    (void)state;
    for (size_t count = 0; count <= 1; count++) {
        const char *expected = count == 0 ? reason : NULL;

        assert_int_equal(access_init(&access, &some, rules, count, &err), 0);
        assert_int_equal(access_view_init(&view, &access, SESSION_TLS_OFF), 0);
        assert_int_equal(view.host.export_count(view.host.context), 1);
        assert_true(view.host.empty_name_hidden);
        assert_ptr_equal(view.host.why_unknown(view.host.context, (const uint8_t *)"gone", 4),
                         expected);
        assert_ptr_equal(view.host.why_unknown(view.host.context, (const uint8_t *)"", 0),
                         expected);
        assert_null(view.host.why_unknown(view.host.context, (const uint8_t *)"gon", 3));
        access_view_destroy(&view);
        access_destroy(&access);
    }
}

// The empty name of a hidden export is unknown, not the name of the first visible one.
static void a_hidden_empty_name_is_said_to_the_session(void **state)
{
    static const char *const rules[] = {":CN=alice,*"};
    static char empty[] = "";
    static struct export two[] = {
        {.name = names[0], .session = {.name = names[0]}},
        {.name = empty, .session = {.name = empty}},
    };
    static struct exports with_empty = {.list = two, .count = 2};
    struct access access;
    struct access_view view;
    struct error err;

    (void)state;
    assert_int_equal(access_init(&access, &with_empty, rules, 1, &err), 0);
    assert_int_equal(access_view_init(&view, &access, SESSION_TLS_REQUIRED), 0);
    assert_true(view.host.empty_name_hidden);
    assert_int_equal(access_view_identify(&view, BOB), 0);
    assert_true(view.host.empty_name_hidden);
    assert_int_equal(view.host.export_count(view.host.context), 1);
    assert_int_equal(access_view_identify(&view, ALICE), 0);
    assert_false(view.host.empty_name_hidden);
    assert_int_equal(view.host.export_count(view.host.context), 2);
    access_view_destroy(&view);
    access_destroy(&access);
}

static void mistakes_are_told(void **state)
{
    static const char *const wrong[] = {"dtaa:CN=alice", "data:", ":*"};
    struct access access;
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(access_init(&access, &exports, &wrong[i], 1, &err), -EINVAL);
        assert_non_null(strstr(err.text, wrong[i]));
    }
}

static void colons_in_a_name_are_no_export(void **state)
{
    static const char *const rules[] = {"CN=urn:alice"};
    struct access access;
    struct error err;

    (void)state;
    assert_int_equal(access_init(&access, &exports, rules, 1, &err), 0);
    assert_sees(&access, "CN=urn:alice", "root data data:old ");
    assert_sees(&access, "alice", "");
    access_destroy(&access);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_rules_everyone_sees_all),
        cmocka_unit_test(a_rule_for_all_is_for_all),
        cmocka_unit_test(rules_of_an_export_add_up),
        cmocka_unit_test(a_rule_for_all_adds_to_those_of_an_export),
        cmocka_unit_test(a_rule_for_a_name_given_by_itself),
        cmocka_unit_test(a_view_follows_the_identity),
        cmocka_unit_test(an_image_that_was_left_out),
        cmocka_unit_test(a_hidden_empty_name_is_said_to_the_session),
        cmocka_unit_test(mistakes_are_told),
        cmocka_unit_test(colons_in_a_name_are_no_export),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
