// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // asprintf
#include "server/tls_check.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// Longest object identifier that a certificate is searched for, in bytes; GnuTLS reports longer
// ones as errors.
#define OID_LENGTH 128
// Bytes of a name in a message.
#define NAME_LENGTH 128

// The certificates of a file.
struct certificates {
    gnutls_x509_crt_t *list;
    unsigned count;
};

const char *tls_date(time_t time, char text[TLS_DATE_LENGTH])
{
    struct tm parts;

    if (time == (time_t)-1 || gmtime_r(&time, &parts) == NULL ||
        strftime(text, TLS_DATE_LENGTH, "%Y-%m-%d %H:%M:%S UTC", &parts) == 0) {
        return "a date that cannot be told";
    }
    return text;
}

__attribute__((format(printf, 2, 3))) static void warn(struct tls_check *check, const char *format,
                                                       ...)
{
    va_list arguments;

    if (check->warning_count == TLS_WARNINGS_MAX) {
        return;
    }
    va_start(arguments, format);
    (void)vsnprintf(check->warnings[check->warning_count++], TLS_WARNING_LENGTH, format, arguments);
    va_end(arguments);
}

static void certificates_free(struct certificates *certificates)
{
    for (unsigned i = 0; i < certificates->count; i++) {
        gnutls_x509_crt_deinit(certificates->list[i]);
    }
    gnutls_free(certificates->list);
}

// Reads all certificates of a file. Returns 0 or a negative errno with a message.
static int certificates_read(struct certificates *certificates, const char *path, struct error *err)
{
    gnutls_datum_t text;
    int result = gnutls_load_file(path, &text);

    *certificates = (struct certificates){0};
    if (result == 0) {
        result = gnutls_x509_crt_list_import2(&certificates->list, &certificates->count, &text,
                                              GNUTLS_X509_FMT_PEM, 0);
        gnutls_free(text.data);
    }
    if (result < 0) {
        *certificates = (struct certificates){0};
        return error_set(err, EINVAL, "--tls-certificates: '%s': %s", path,
                         gnutls_strerror(result));
    }
    return 0;
}

// ---- Dates --------------------------------------------------------------------------------------

enum validity { NOT_YET_VALID, VALID, EXPIRED };

static enum validity validity_of(gnutls_x509_crt_t certificate, time_t now)
{
    if (now < gnutls_x509_crt_get_activation_time(certificate)) {
        return NOT_YET_VALID;
    }
    return now > gnutls_x509_crt_get_expiration_time(certificate) ? EXPIRED : VALID;
}

// Explains why a certificate is not valid at the time now, and how to replace it.
static void say_invalid(char *text, size_t size, gnutls_x509_crt_t certificate, time_t now)
{
    char date[TLS_DATE_LENGTH];
    char clock[TLS_DATE_LENGTH];

    if (validity_of(certificate, now) == EXPIRED) {
        snprintf(text, size, "expired at %s; renew it",
                 tls_date(gnutls_x509_crt_get_expiration_time(certificate), date));
    } else {
        snprintf(text, size, "is not valid before %s, and it is %s here; wait, or set the clock",
                 tls_date(gnutls_x509_crt_get_activation_time(certificate), date),
                 tls_date(now, clock));
    }
}

// ---- The server's certificate -------------------------------------------------------------------

// Returns the index of the certificate in the chain that signed the one at [index], or -1.
static int signer_of(const struct certificates *chain, unsigned index)
{
    for (unsigned i = 0; i < chain->count; i++) {
        if (i != index && gnutls_x509_crt_check_issuer(chain->list[index], chain->list[i]) != 0) {
            return (int)i;
        }
    }
    return -1;
}

static bool self_signed(gnutls_x509_crt_t certificate)
{
    return gnutls_x509_crt_check_issuer(certificate, certificate) != 0;
}

// Checks the server's certificate and those that lead from it to an authority. The authority's own
// certificate is not checked: clients have a copy that they trust.
static int tls_check_chain(struct tls_check *check, const struct certificates *chain,
                           const char *path, time_t now, struct error *err)
{
    int index = 0;

    check->expires = gnutls_x509_crt_get_expiration_time(chain->list[0]);
    for (unsigned steps = 0; index >= 0 && steps < chain->count; steps++) {
        gnutls_x509_crt_t certificate = chain->list[index];
        time_t expires = gnutls_x509_crt_get_expiration_time(certificate);
        char name[NAME_LENGTH] = "?";
        size_t length = sizeof(name);
        char text[TLS_WARNING_LENGTH];

        if (index > 0 && self_signed(certificate)) {
            break;
        }
        if (validity_of(certificate, now) != VALID) {
            say_invalid(text, sizeof(text), certificate, now);
            if (index == 0) {
                return error_set(err, EINVAL, "--tls-certificates: '%s' %s", path, text);
            }
            (void)gnutls_x509_crt_get_dn(certificate, name, &length);
            return error_set(err, EINVAL, "--tls-certificates: '%s': the intermediate '%s' %s",
                             path, name, text);
        }
        check->expires = expires < check->expires ? expires : check->expires;
        index = signer_of(chain, (unsigned)index);
    }
    return 0;
}

// Returns true if the certificate may be a server's: it names no purposes, or that one among them.
static bool serves(gnutls_x509_crt_t certificate)
{
    for (unsigned i = 0;; i++) {
        char oid[OID_LENGTH];
        size_t length = sizeof(oid);
        int result = gnutls_x509_crt_get_key_purpose_oid(certificate, i, oid, &length, NULL);

        if (result == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) {
            return i == 0;
        }
        if (result < 0) {
            continue;
        }
        if (strcmp(oid, GNUTLS_KP_TLS_WWW_SERVER) == 0 || strcmp(oid, GNUTLS_KP_ANY) == 0) {
            return true;
        }
    }
}

// ---- Authorities and revocations ----------------------------------------------------------------

// Returns true if one of the authorities has signed the end of the chain.
static bool vouched_for(const struct certificates *chain, const struct certificates *authorities)
{
    for (unsigned i = 0; i < chain->count; i++) {
        for (unsigned k = 0; k < authorities->count; k++) {
            if (gnutls_x509_crt_check_issuer(chain->list[i], authorities->list[k]) != 0) {
                return true;
            }
        }
    }
    return false;
}

static int check_authorities(struct tls_check *check, const struct certificates *chain,
                             const char *path, bool verify_peer, time_t now, struct error *err)
{
    struct certificates authorities;
    unsigned valid = 0;
    char text[TLS_WARNING_LENGTH] = "has no certificate";
    int result;

    if (access(path, F_OK) < 0) {
        // A missing file is reported when it is needed.
        return 0;
    }
    result = certificates_read(&authorities, path, err);
    if (result < 0) {
        return result;
    }
    for (unsigned i = 0; i < authorities.count; i++) {
        if (validity_of(authorities.list[i], now) == VALID) {
            valid++;
        } else {
            say_invalid(text, sizeof(text), authorities.list[i], now);
        }
    }
    if (valid == 0 && verify_peer) {
        result = error_set(err, EINVAL, "--tls-certificates: '%s' %s", path, text);
    } else if (valid < authorities.count) {
        warn(check, "'%s': one of its certificates %s", path, text);
    } else if (!vouched_for(chain, &authorities)) {
        warn(check, "'%s' has not signed server-cert.pem; clients must trust another authority",
             path);
    }
    certificates_free(&authorities);
    return result;
}

// An outdated list of revoked certificates stays in use, with a warning: certificates revoked since
// are accepted.
static void check_revocations(struct tls_check *check, const char *path, time_t now)
{
    gnutls_x509_crl_t *list = NULL;
    unsigned count = 0;
    gnutls_datum_t text;
    char date[TLS_DATE_LENGTH];

    if (gnutls_load_file(path, &text) < 0) {
        // A missing file is reported when it is needed.
        return;
    }
    if (gnutls_x509_crl_list_import2(&list, &count, &text, GNUTLS_X509_FMT_PEM, 0) < 0) {
        count = 0;
    }
    for (unsigned i = 0; i < count; i++) {
        time_t next = gnutls_x509_crl_get_next_update(list[i]);

        if (next != (time_t)-1 && next < now) {
            warn(check,
                 "'%s' should have been replaced by %s; certificates that were revoked since are "
                 "let in",
                 path, tls_date(next, date));
        }
        gnutls_x509_crl_deinit(list[i]);
    }
    gnutls_free(list);
    gnutls_free(text.data);
}

// ---- The whole directory ------------------------------------------------------------------------

void tls_check_secret(struct tls_check *check, const char *path)
{
    struct stat st;

    if (stat(path, &st) == 0 && (st.st_mode & S_IROTH) != 0) {
        warn(check, "'%s' can be read by every user of this machine; 'chmod o= %s'", path, path);
    }
}

static char *in_directory(const char *directory, const char *name)
{
    char *path;

    return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
}

static int tls_check_files(struct tls_check *check, char *const paths[4], bool verify_peer,
                           time_t now, struct error *err)
{
    struct certificates chain;
    int result = certificates_read(&chain, paths[0], err);

    if (result < 0) {
        return result;
    }
    result = tls_check_chain(check, &chain, paths[0], now, err);
    if (result == 0 && !serves(chain.list[0])) {
        warn(check,
             "'%s' is not for servers (its purposes lack TLS WWW Server); clients may refuse it",
             paths[0]);
    }
    if (result == 0) {
        tls_check_secret(check, paths[1]);
        result = check_authorities(check, &chain, paths[2], verify_peer, now, err);
    }
    if (result == 0) {
        check_revocations(check, paths[3], now);
    }
    certificates_free(&chain);
    return result;
}

int tls_check_directory(struct tls_check *check, const char *directory, bool verify_peer,
                        time_t now, struct error *err)
{
    char *paths[] = {
        in_directory(directory, "server-cert.pem"),
        in_directory(directory, "server-key.pem"),
        in_directory(directory, "ca-cert.pem"),
        in_directory(directory, "ca-crl.pem"),
    };
    int result;

    if (paths[0] != NULL && paths[1] != NULL && paths[2] != NULL && paths[3] != NULL) {
        result = tls_check_files(check, paths, verify_peer, now, err);
    } else {
        result = error_set(err, ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        free(paths[i]);
    }
    return result;
}
