// SPDX-License-Identifier: Apache-2.0
#include "server/tls.h"

#include <assert.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/tls_credentials.h"

// Largest plaintext of one record ("TLSPlaintext" in RFC 8446, section 5.1).
#define RECORD_PLAIN_MAX 16384u
// Most bytes by which a record exceeds its plaintext (RFC 5246, section 6.2.3, and 5 bytes of
// header; RFC 8446 allows less).
#define RECORD_OVERHEAD_MAX (2048u + 5u)
// Bytes of a record's header, and the record type of alerts (RFC 8446, section 5.1).
#define RECORD_HEADER 5u
#define RECORD_ALERT 21u
// Room for records that TLS sends by itself: alerts, key updates.
#define OUTPUT_SLACK 4096u
// Ciphertext that waits to be sent, in bytes: sixteen full records, so that one system call sends
// 256 KiB. Received ciphertext: as much as one system call brings.
#define OUTPUT_BYTES (16u * (RECORD_PLAIN_MAX + RECORD_OVERHEAD_MAX) + OUTPUT_SLACK)
#define INPUT_BYTES (128u << 10)

// Bytes [start, end) of data.
struct bytes {
    uint8_t *data;
    size_t size;
    size_t start;
    size_t end;
};

struct tls {
    gnutls_session_t session;
    struct tls_credentials *credentials;
    struct bytes input;
    struct bytes output;
    // No bytes follow those in the input.
    bool eof;
    bool done;     // the handshake is done
    bool bye_said; // close_notify was queued
    // Result of GnuTLS when it could read nothing more; 1 before.
    ssize_t ended;
    bool identified;
    char identity[TLS_IDENTITY_MAX];
    char reason[256];
};

// ---- Ciphertext, in GnuTLS's callbacks ----------------------------------------------------------

static ssize_t pull(gnutls_transport_ptr_t context, void *buffer, size_t size)
{
    struct tls *tls = context;
    size_t n = tls->input.end - tls->input.start;

    if (n == 0) {
        if (tls->eof) {
            return 0;
        }
        gnutls_transport_set_errno(tls->session, EAGAIN);
        return -1;
    }
    n = n < size ? n : size;
    memcpy(buffer, tls->input.data + tls->input.start, n);
    tls->input.start += n;
    return (ssize_t)n;
}

static ssize_t push(gnutls_transport_ptr_t context, const void *data, size_t size)
{
    struct tls *tls = context;
    struct bytes *output = &tls->output;

    if (output->start > 0 && output->size - output->end < size) {
        memmove(output->data, output->data + output->start, output->end - output->start);
        output->end -= output->start;
        output->start = 0;
    }
    if (output->size - output->end < size) {
        gnutls_transport_set_errno(tls->session, EAGAIN);
        return -1;
    }
    memcpy(output->data + output->end, data, size);
    output->end += size;
    return (ssize_t)size;
}

// GnuTLS calls this only where it has a timeout. Missing input is reported by pull().
static int pull_timeout(gnutls_transport_ptr_t context, unsigned milliseconds)
{
    const struct tls *tls = context;

    (void)milliseconds;
    return tls->eof || tls->input.end > tls->input.start;
}

size_t tls_input(struct tls *tls, struct iovec *iov)
{
    struct bytes *input = &tls->input;

    if (input->start == input->end) {
        input->start = 0;
        input->end = 0;
    }
    iov->iov_base = input->data + input->end;
    iov->iov_len = input->size - input->end;
    return iov->iov_len;
}

void tls_received(struct tls *tls, size_t bytes)
{
    assert(bytes <= tls->input.size - tls->input.end);
    tls->input.end += bytes;
}

void tls_eof(struct tls *tls)
{
    tls->eof = true;
}

size_t tls_output(struct tls *tls, struct iovec *iov)
{
    iov->iov_base = tls->output.data + tls->output.start;
    iov->iov_len = tls->output.end - tls->output.start;
    return iov->iov_len;
}

void tls_sent(struct tls *tls, size_t bytes)
{
    struct bytes *output = &tls->output;

    assert(bytes <= output->end - output->start);
    output->start += bytes;
    if (output->start == output->end) {
        output->start = 0;
        output->end = 0;
    }
}

// ---- Life ---------------------------------------------------------------------------------------

struct tls *tls_new(const struct tls_server *server)
{
    struct tls *tls = calloc(1, sizeof(*tls));

    if (tls == NULL) {
        return NULL;
    }
    tls->input = (struct bytes){.data = malloc(INPUT_BYTES), .size = INPUT_BYTES};
    tls->output = (struct bytes){.data = malloc(OUTPUT_BYTES), .size = OUTPUT_BYTES};
    tls->ended = 1;
    tls->credentials = server->credentials;
    tls->credentials->references++;
    if (tls->input.data == NULL || tls->output.data == NULL ||
        gnutls_init(&tls->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS) < 0) {
        tls->session = NULL;
        tls_free(tls);
        return NULL;
    }
    if (tls_credentials_use(tls->credentials, tls->session) < 0) {
        tls_free(tls);
        return NULL;
    }
    gnutls_transport_set_ptr(tls->session, tls);
    gnutls_transport_set_pull_function(tls->session, pull);
    gnutls_transport_set_push_function(tls->session, push);
    gnutls_transport_set_pull_timeout_function(tls->session, pull_timeout);
    // The owner has a deadline of its own.
    gnutls_handshake_set_timeout(tls->session, GNUTLS_INDEFINITE_TIMEOUT);
    return tls;
}

void tls_free(struct tls *tls)
{
    if (tls == NULL) {
        return;
    }
    if (tls->session != NULL) {
        gnutls_deinit(tls->session);
    }
    tls_credentials_drop(tls->credentials);
    free(tls->input.data);
    free(tls->output.data);
    free(tls);
}

// ---- Handshake ----------------------------------------------------------------------------------

static void tls_fail(struct tls *tls, const char *what, const char *why)
{
    snprintf(tls->reason, sizeof(tls->reason), "%s: %s", what, why);
}

static const char *alert_name(gnutls_alert_description_t alert)
{
    const char *name = gnutls_alert_get_name(alert);

    return name != NULL ? name : "an alert that GnuTLS does not know";
}

// Returns the unencrypted alert among the records in the input, or -1. With such an alert OpenSSL's
// clients refuse a certificate in TLS 1.3; GnuTLS reports only that it cannot be decrypted. For the
// log only: anybody could have put it there.
static int plain_alert(const struct tls *tls)
{
    const uint8_t *at = tls->input.data + tls->input.start;
    size_t left = tls->input.end - tls->input.start;

    while (left >= RECORD_HEADER) {
        size_t length = RECORD_HEADER + ((size_t)at[3] << 8 | at[4]);

        if (at[0] == RECORD_ALERT && length == RECORD_HEADER + 2 && left >= length) {
            return at[RECORD_HEADER + 1];
        }
        if (length > left) {
            break;
        }
        at += length;
        left -= length;
    }
    return -1;
}

// Explains why the peer's certificate was refused.
static void fail_verification(struct tls *tls)
{
    unsigned status = gnutls_session_get_verify_cert_status(tls->session);
    gnutls_datum_t text;

    if (gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) < 0) {
        tls_fail(tls, "TLS handshake failed", "the client's certificate was not accepted");
        return;
    }
    tls_fail(tls, "TLS handshake failed", (const char *)text.data);
    gnutls_free(text.data);
}

// Reads the distinguished name of the peer's certificate. Returns 0 or a GnuTLS error, negative.
static int name_of_certificate(struct tls *tls)
{
    unsigned count;
    const gnutls_datum_t *list = gnutls_certificate_get_peers(tls->session, &count);
    gnutls_x509_crt_t certificate;
    gnutls_datum_t name;
    int result;

    if (list == NULL || count == 0) {
        return GNUTLS_E_NO_CERTIFICATE_FOUND;
    }
    result = gnutls_x509_crt_init(&certificate);
    if (result < 0) {
        return result;
    }
    result = gnutls_x509_crt_import(certificate, &list[0], GNUTLS_X509_FMT_DER);
    if (result >= 0) {
        result = gnutls_x509_crt_get_dn3(certificate, &name, 0);
    }
    gnutls_x509_crt_deinit(certificate);
    if (result < 0) {
        return result;
    }
    // A truncated name could be another peer's.
    if (name.size >= TLS_IDENTITY_MAX || memchr(name.data, '\0', name.size) != NULL) {
        result = GNUTLS_E_ASN1_VALUE_NOT_VALID;
    } else {
        memcpy(tls->identity, name.data, name.size);
        tls->identity[name.size] = '\0';
        tls->identified = true;
    }
    gnutls_free(name.data);
    return result < 0 ? result : 0;
}

static int tls_identify(struct tls *tls)
{
    const char *name;

    if (tls->credentials->verify_peer) {
        return name_of_certificate(tls);
    }
    if (tls->credentials->psk == NULL) {
        return 0;
    }
    name = gnutls_psk_server_get_username(tls->session);
    if (name == NULL || strlen(name) >= TLS_IDENTITY_MAX) {
        return GNUTLS_E_ILLEGAL_PARAMETER;
    }
    strcpy(tls->identity, name);
    tls->identified = true;
    return 0;
}

enum tls_progress tls_handshake(struct tls *tls)
{
    int alert = plain_alert(tls);
    int result;

    assert(!tls->done);
    do {
        result = gnutls_handshake(tls->session);
    } while (result < 0 && result != GNUTLS_E_AGAIN && !gnutls_error_is_fatal(result));
    if (result == GNUTLS_E_AGAIN) {
        return TLS_MORE;
    }
    if (result == GNUTLS_E_SUCCESS) {
        result = tls_identify(tls);
    }
    if (result == GNUTLS_E_SUCCESS) {
        tls->done = true;
        return TLS_DONE;
    }
    gnutls_alert_send_appropriate(tls->session, result);
    if (result == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR) {
        fail_verification(tls);
    } else if (result == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        tls_fail(tls, "the client has ended the TLS handshake",
                 alert_name(gnutls_alert_get(tls->session)));
    } else if (result == GNUTLS_E_DECRYPTION_FAILED && alert >= 0) {
        tls_fail(tls, "the client has ended the TLS handshake",
                 alert_name((gnutls_alert_description_t)alert));
    } else if (result == GNUTLS_E_PREMATURE_TERMINATION) {
        tls_fail(tls, "TLS handshake failed", "the client has closed the connection");
    } else {
        tls_fail(tls, "TLS handshake failed", gnutls_strerror(result));
    }
    return TLS_FAILED;
}

// ---- Plaintext ----------------------------------------------------------------------------------

// Fills the buffer as far as there is plaintext. Returns the number of bytes.
static size_t read_records(struct tls *tls, uint8_t *buffer, size_t size)
{
    size_t total = 0;

    while (total < size && tls->ended > 0) {
        ssize_t n = gnutls_record_recv(tls->session, buffer + total, size - total);

        if (n > 0) {
            total += (size_t)n;
        } else if (n == GNUTLS_E_AGAIN) {
            break;
        } else if (n != GNUTLS_E_INTERRUPTED) {
            tls->ended = n;
        }
    }
    return total;
}

ssize_t tls_read(struct tls *tls, const struct iovec *iov, int count)
{
    size_t total = 0;

    for (int i = 0; i < count; i++) {
        size_t n = read_records(tls, iov[i].iov_base, iov[i].iov_len);

        total += n;
        if (n < iov[i].iov_len) {
            break;
        }
    }
    if (total > 0) {
        return (ssize_t)total;
    }
    if (tls->ended > 0) {
        return -EAGAIN;
    }
    if (tls->ended == 0 || tls->ended == GNUTLS_E_PREMATURE_TERMINATION) {
        return 0;
    }
    tls_fail(tls, "TLS failed", gnutls_strerror((int)tls->ended));
    return -EPROTO;
}

// Copies bytes from the front of the iovecs, skipping offset bytes of the first.
static size_t gather(uint8_t *to, size_t size, const struct iovec *iov, int count, size_t offset)
{
    size_t total = 0;

    for (int i = 0; i < count && total < size; i++) {
        size_t n = iov[i].iov_len - offset;

        n = n < size - total ? n : size - total;
        memcpy(to + total, (const uint8_t *)iov[i].iov_base + offset, n);
        total += n;
        offset = 0;
    }
    return total;
}

ssize_t tls_write(struct tls *tls, const struct iovec *iov, int count)
{
    uint8_t gathered[RECORD_PLAIN_MAX];
    size_t total = 0;
    size_t offset = 0; // within iov[0]

    while (count > 0 && tls->output.size - (tls->output.end - tls->output.start) >=
                            RECORD_PLAIN_MAX + RECORD_OVERHEAD_MAX + OUTPUT_SLACK) {
        const uint8_t *data = (const uint8_t *)iov[0].iov_base + offset;
        size_t n = iov[0].iov_len - offset;
        ssize_t sent;

        // Small pieces are gathered into one record.
        if (n < RECORD_PLAIN_MAX && count > 1) {
            n = gather(gathered, sizeof(gathered), iov, count, offset);
            data = gathered;
        }
        n = n < RECORD_PLAIN_MAX ? n : RECORD_PLAIN_MAX;
        sent = gnutls_record_send(tls->session, data, n);
        if (sent <= 0) {
            tls_fail(tls, "TLS failed", gnutls_strerror((int)sent));
            return -EPROTO;
        }
        total += (size_t)sent;
        offset += (size_t)sent;
        while (count > 0 && offset >= iov[0].iov_len) {
            offset -= iov[0].iov_len;
            iov++;
            count--;
        }
    }
    return (ssize_t)total;
}

void tls_bye(struct tls *tls)
{
    if (tls->done && !tls->bye_said) {
        tls->bye_said = true;
        // Queues close_notify. Without room for it it is left out: the end of the connection tells
        // the peer as much.
        (void)gnutls_bye(tls->session, GNUTLS_SHUT_WR);
    }
}

// ---- For the log --------------------------------------------------------------------------------

const char *tls_identity(const struct tls *tls)
{
    return tls->identified ? tls->identity : NULL;
}

void tls_describe(const struct tls *tls, char *text, size_t size)
{
    snprintf(text, size, "%s, %s",
             gnutls_protocol_get_name(gnutls_protocol_get_version(tls->session)),
             gnutls_cipher_get_name(gnutls_cipher_get(tls->session)));
}

const char *tls_reason(const struct tls *tls)
{
    return tls->reason;
}
