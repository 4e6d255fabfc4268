// SPDX-License-Identifier: Apache-2.0
// test_tls.c: TLS as plain data, against a GnuTLS client in this process: handshake and data in
// pieces of any size, both kinds of ends, and input that is not TLS.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/tls.h"

#define KEY "00112233445566778899aabbccddeeff"
#define WRONG_KEY "ffeeddccbbaa99887766554433221100"
#define DATA_BYTES (3u << 20)

// A client, and the server's side of it.
struct pair {
    char keys[64]; // file
    struct tls_server *server;
    struct tls *tls;
    gnutls_session_t client;
    gnutls_psk_client_credentials_t credentials;
    size_t piece; // largest transfer in either direction
};

// The client's bytes go straight to the server's input, as far as there is room.
static ssize_t client_push(gnutls_transport_ptr_t context, const void *data, size_t size)
{
    struct pair *p = context;
    struct iovec iov;
    size_t n = tls_input(p->tls, &iov);

    n = n < size ? n : size;
    n = n < p->piece ? n : p->piece;
    if (n == 0) {
        gnutls_transport_set_errno(p->client, EAGAIN);
        return -1;
    }
    memcpy(iov.iov_base, data, n);
    tls_received(p->tls, n);
    return (ssize_t)n;
}

static ssize_t client_pull(gnutls_transport_ptr_t context, void *data, size_t size)
{
    struct pair *p = context;
    struct iovec iov;
    size_t n = tls_output(p->tls, &iov);

    n = n < size ? n : size;
    n = n < p->piece ? n : p->piece;
    if (n == 0) {
        gnutls_transport_set_errno(p->client, EAGAIN);
        return -1;
    }
    memcpy(data, iov.iov_base, n);
    tls_sent(p->tls, n);
    return (ssize_t)n;
}

static int setup(void **state)
{
    struct pair *p = calloc(1, sizeof(*p));
    struct tls_options options = {0};
    struct error err;
    FILE *file;
    int fd;

    assert_non_null(p);
    strcpy(p->keys, "/tmp/lazycow-test-XXXXXX");
    fd = mkstemp(p->keys);
    assert_true(fd >= 0);
    file = fdopen(fd, "w");
    assert_non_null(file);
    fputs("# a comment\n\nbob:ffff\nalice:" KEY "\n", file);
    assert_int_equal(fclose(file), 0);
    options.psk = p->keys;
    assert_int_equal(tls_server_new(&p->server, &options, time(NULL), &err), 0);
    p->piece = SIZE_MAX;
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct pair *p = *state;

    if (p->client != NULL) {
        gnutls_deinit(p->client);
        gnutls_psk_free_client_credentials(p->credentials);
    }
    tls_free(p->tls);
    tls_server_free(p->server);
    unlink(p->keys);
    free(p);
    return 0;
}

static void begin(struct pair *p, const char *user, const char *key)
{
    const gnutls_datum_t hex = {(unsigned char *)key, (unsigned)strlen(key)};

    p->tls = tls_new(p->server);
    assert_non_null(p->tls);
    assert_int_equal(gnutls_psk_allocate_client_credentials(&p->credentials), 0);
    assert_int_equal(
        gnutls_psk_set_client_credentials(p->credentials, user, &hex, GNUTLS_PSK_KEY_HEX), 0);
    assert_int_equal(gnutls_init(&p->client, GNUTLS_CLIENT | GNUTLS_NONBLOCK), 0);
    assert_int_equal(gnutls_priority_set_direct(p->client, "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK", NULL),
                     0);
    assert_int_equal(gnutls_credentials_set(p->client, GNUTLS_CRD_PSK, p->credentials), 0);
    gnutls_transport_set_ptr(p->client, p);
    gnutls_transport_set_push_function(p->client, client_push);
    gnutls_transport_set_pull_function(p->client, client_pull);
    gnutls_handshake_set_timeout(p->client, GNUTLS_INDEFINITE_TIMEOUT);
}

// Lets both sides go on until both are done or one fails. Returns the server's result.
static enum tls_progress shake(struct pair *p)
{
    enum tls_progress progress = TLS_MORE;
    int client = GNUTLS_E_AGAIN;

    for (int i = 0; i < 100000 && (progress == TLS_MORE || client == GNUTLS_E_AGAIN); i++) {
        if (client == GNUTLS_E_AGAIN) {
            client = gnutls_handshake(p->client);
        }
        if (progress == TLS_MORE) {
            progress = tls_handshake(p->tls);
        }
        if (progress == TLS_FAILED) {
            break;
        }
    }
    return progress;
}

static void fill(uint8_t *data, size_t size)
{
    uint32_t x = 1;

    for (size_t i = 0; i < size; i++) {
        x = x * 1664525u + 1013904223u;
        data[i] = (uint8_t)(x >> 24);
    }
}

// The server sends all of data, in iovecs of many sizes, while the client receives.
static void send_all(struct pair *p, const uint8_t *data, uint8_t *received)
{
    size_t sent = 0;
    size_t got = 0;

    while (got < DATA_BYTES) {
        static const size_t sizes[] = {20, 4096, 1, 70000, 16384, 300};
        struct iovec iov[6];
        size_t at = sent;
        int count = 0;
        ssize_t n;

        for (; count < 6 && at < DATA_BYTES; count++) {
            size_t size = sizes[count] < DATA_BYTES - at ? sizes[count] : DATA_BYTES - at;

            iov[count] = (struct iovec){(uint8_t *)data + at, size};
            at += size;
        }
        n = tls_write(p->tls, iov, count);
        assert_true(n >= 0);
        sent += (size_t)n;
        n = gnutls_record_recv(p->client, received + got, DATA_BYTES - got);
        assert_true(n > 0 || n == GNUTLS_E_AGAIN);
        got += n > 0 ? (size_t)n : 0;
    }
    assert_int_equal(sent, DATA_BYTES);
    assert_memory_equal(data, received, DATA_BYTES);
}

// The client sends all of data, the server reads into two iovecs at a time.
static void receive_all(struct pair *p, const uint8_t *data, uint8_t *received)
{
    size_t sent = 0;
    size_t got = 0;
    bool unfinished = false; // GnuTLS wants the rest of a record sent first

    memset(received, 0, DATA_BYTES);
    while (got < DATA_BYTES) {
        size_t left = DATA_BYTES - got;
        size_t first = left < 1000 ? left : 1000;
        struct iovec iov[2] = {
            {received + got, first},
            {received + got + first, left - first < 50000 ? left - first : 50000}};
        ssize_t n;

        if (sent < DATA_BYTES) {
            n = unfinished ? gnutls_record_send(p->client, NULL, 0)
                           : gnutls_record_send(p->client, data + sent, DATA_BYTES - sent);
            unfinished = n == GNUTLS_E_AGAIN;
            assert_true(n > 0 || unfinished);
            sent += n > 0 ? (size_t)n : 0;
        }
        n = tls_read(p->tls, iov, 2);
        assert_true(n > 0 || n == -EAGAIN);
        got += n > 0 ? (size_t)n : 0;
    }
    assert_memory_equal(data, received, DATA_BYTES);
}

static void data_comes_through_in_any_pieces(void **state)
{
    static const size_t pieces[] = {SIZE_MAX, 100000, 1460, 7};
    struct pair *p = *state;
    uint8_t *data = malloc(DATA_BYTES);
    uint8_t *received = malloc(DATA_BYTES);

    assert_non_null(data);
    assert_non_null(received);
    fill(data, DATA_BYTES);
    begin(p, "alice", KEY);
    p->piece = 3;
    assert_int_equal(shake(p), TLS_DONE);
    assert_string_equal(tls_identity(p->tls), "alice");
    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        p->piece = pieces[i];
        send_all(p, data, received);
        receive_all(p, data, received);
    }
    free(data);
    free(received);
}

static void output_is_bounded(void **state)
{
    struct pair *p = *state;
    uint8_t *data = calloc(1, DATA_BYTES);
    struct iovec iov = {data, DATA_BYTES};
    struct iovec out;
    ssize_t n;

    begin(p, "alice", KEY);
    assert_int_equal(shake(p), TLS_DONE);
    n = tls_write(p->tls, &iov, 1);
    assert_true(n >= 256 << 10 && n <= 320 << 10);
    assert_int_equal(tls_write(p->tls, &iov, 1), 0);
    // With that the room is there again.
    tls_sent(p->tls, tls_output(p->tls, &out));
    assert_true(tls_write(p->tls, &iov, 1) > 0);
    free(data);
}

static void a_wrong_key_and_a_stranger_fail_alike(void **state)
{
    struct pair *p = *state;
    char first[256];

    begin(p, "alice", WRONG_KEY);
    assert_int_equal(shake(p), TLS_FAILED);
    assert_null(tls_identity(p->tls));
    snprintf(first, sizeof(first), "%s", tls_reason(p->tls));
    assert_true(strlen(first) > 0);
    gnutls_deinit(p->client);
    gnutls_psk_free_client_credentials(p->credentials);
    tls_free(p->tls);
    begin(p, "mallory", KEY);
    assert_int_equal(shake(p), TLS_FAILED);
    assert_string_equal(tls_reason(p->tls), first);
}

static void what_is_no_tls_fails_and_gets_an_alert(void **state)
{
    struct pair *p = *state;
    struct iovec iov;

    begin(p, "alice", KEY);
    assert_true(tls_input(p->tls, &iov) > 64);
    memset(iov.iov_base, 'x', 64);
    tls_received(p->tls, 64);
    assert_int_equal(tls_handshake(p->tls), TLS_FAILED);
    assert_true(strlen(tls_reason(p->tls)) > 0);
    assert_true(tls_output(p->tls, &iov) >= 7);
    assert_int_equal(((uint8_t *)iov.iov_base)[0], 21); // ContentType alert
}

static void an_end_inside_the_handshake_fails_it(void **state)
{
    struct pair *p = *state;

    begin(p, "alice", KEY);
    assert_int_equal(tls_handshake(p->tls), TLS_MORE);
    tls_eof(p->tls);
    assert_int_equal(tls_handshake(p->tls), TLS_FAILED);
}

// The end comes after the data before it, announced by the peer or not.
static void ends_come_in_order(void **state)
{
    struct pair *p = *state;

    for (int announced = 0; announced < 2; announced++) {
        uint8_t buffer[64];
        struct iovec iov = {buffer, sizeof(buffer)};

        begin(p, "alice", KEY);
        assert_int_equal(shake(p), TLS_DONE);
        assert_int_equal(tls_read(p->tls, &iov, 1), -EAGAIN);
        assert_int_equal(gnutls_record_send(p->client, "last words", 10), 10);
        if (announced) {
            assert_int_equal(gnutls_bye(p->client, GNUTLS_SHUT_WR), 0);
        } else {
            tls_eof(p->tls);
        }
        assert_int_equal(tls_read(p->tls, &iov, 1), 10);
        assert_int_equal(tls_read(p->tls, &iov, 1), 0);
        assert_int_equal(tls_read(p->tls, &iov, 1), 0);
        gnutls_deinit(p->client);
        gnutls_psk_free_client_credentials(p->credentials);
        p->client = NULL;
        tls_free(p->tls);
        p->tls = NULL;
    }
}

static void a_changed_byte_is_noticed(void **state)
{
    struct pair *p = *state;
    uint8_t buffer[64];
    struct iovec iov = {buffer, sizeof(buffer)};
    struct iovec room;
    uint8_t *record;

    begin(p, "alice", KEY);
    assert_int_equal(shake(p), TLS_DONE);
    assert_int_equal(tls_read(p->tls, &iov, 1), -EAGAIN);
    assert_true(tls_input(p->tls, &room) > 0);
    record = room.iov_base;
    assert_int_equal(gnutls_record_send(p->client, "data", 4), 4);
    record[7] ^= 1;
    assert_int_equal(tls_read(p->tls, &iov, 1), -EPROTO);
    assert_true(strlen(tls_reason(p->tls)) > 0);
}

static void a_failed_reload_changes_nothing(void **state)
{
    struct pair *p = *state;
    struct error err;
    FILE *file = fopen(p->keys, "w");

    assert_non_null(file);
    fputs("alice:" KEY "\nbob=ffff\n", file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(tls_server_reload(p->server, time(NULL), &err), -EINVAL);
    assert_non_null(strstr(err.text, "line 2"));
    begin(p, "alice", KEY);
    assert_int_equal(shake(p), TLS_DONE);
}

static void a_reload_spares_those_who_have_begun(void **state)
{
    struct pair *p = *state;
    struct error err;
    FILE *file = fopen(p->keys, "w");

    assert_non_null(file);
    fputs("bob:" KEY "\n", file);
    assert_int_equal(fclose(file), 0);
    begin(p, "alice", KEY);
    assert_int_equal(tls_server_reload(p->server, time(NULL), &err), 0);
    assert_int_equal(shake(p), TLS_DONE);
    gnutls_deinit(p->client);
    gnutls_psk_free_client_credentials(p->credentials);
    tls_free(p->tls);
    begin(p, "alice", KEY);
    assert_int_equal(shake(p), TLS_FAILED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(data_comes_through_in_any_pieces, setup, teardown),
        cmocka_unit_test_setup_teardown(output_is_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(a_wrong_key_and_a_stranger_fail_alike, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_no_tls_fails_and_gets_an_alert, setup, teardown),
        cmocka_unit_test_setup_teardown(an_end_inside_the_handshake_fails_it, setup, teardown),
        cmocka_unit_test_setup_teardown(ends_come_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(a_changed_byte_is_noticed, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failed_reload_changes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_reload_spares_those_who_have_begun, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
