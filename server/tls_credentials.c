// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // asprintf
#include "server/tls_credentials.h"

#include <assert.h>
#include <errno.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// "TLS" in the protocol demands TLS 1.2 at least. The rest is the system's policy.
#define PRIORITY_CERTIFICATES "-VERS-SSL3.0:-VERS-TLS1.0:-VERS-TLS1.1:-VERS-DTLS-ALL"
// Forward secrecy if the client supports it; some clients support only plain PSK.
#define PRIORITY_PSK PRIORITY_CERTIFICATES ":+ECDHE-PSK:+DHE-PSK:+PSK"

// Most keys in one file, and the longest line: more keys than a site has clients, and room for a
// name and a key of 2048 bits many times over.
#define PSK_KEYS_MAX 65536u
#define PSK_LINE_MAX 4096

struct psk_key {
    char *name;
    gnutls_datum_t key;
};

struct tls_psk_list {
    size_t count;
    struct psk_key keys[];
};

// ---- Pre-shared keys ----------------------------------------------------------------------------

static void psk_list_free(struct tls_psk_list *list)
{
    for (size_t i = 0; list != NULL && i < list->count; i++) {
        free(list->keys[i].name);
        gnutls_memset(list->keys[i].key.data, 0, list->keys[i].key.size);
        gnutls_free(list->keys[i].key.data);
    }
    free(list);
}

// Appends the key of a line NAME:KEY; cuts the line. Skips empty lines and comments. Returns 0 or a
// negative errno.
static int psk_add_line(struct tls_psk_list **list, char *line)
{
    struct tls_psk_list *grown;
    struct psk_key *key;
    gnutls_datum_t hex;
    char *colon;

    line[strcspn(line, "\r\n")] = '\0';
    if (line[0] == '\0' || line[0] == '#') {
        return 0;
    }
    colon = strrchr(line, ':');
    if (colon == NULL || colon == line || (*list)->count == PSK_KEYS_MAX) {
        return -EINVAL;
    }
    *colon = '\0';
    if (strlen(line) >= TLS_IDENTITY_MAX) {
        return -EINVAL;
    }
    // The list grows in powers of two, so it is full when its count is one.
    if (((*list)->count & ((*list)->count - 1)) == 0) {
        size_t room = (*list)->count > 0 ? 2 * (*list)->count : 1;

        grown = realloc(*list, sizeof(*grown) + room * sizeof(grown->keys[0]));
        if (grown == NULL) {
            return -ENOMEM;
        }
        *list = grown;
    }
    key = &(*list)->keys[(*list)->count];
    hex = (gnutls_datum_t){.data = (unsigned char *)colon + 1, .size = (unsigned)strlen(colon + 1)};
    if (hex.size == 0 || gnutls_hex_decode2(&hex, &key->key) < 0) {
        return -EINVAL;
    }
    key->name = strdup(line);
    if (key->name == NULL) {
        gnutls_free(key->key.data);
        return -ENOMEM;
    }
    (*list)->count++;
    return 0;
}

static int psk_read(struct tls_psk_list **list, const char *path, struct error *err)
{
    FILE *file = fopen(path, "re");
    char line[PSK_LINE_MAX];
    unsigned number = 0;
    int result = 0;

    if (file == NULL) {
        return error_set(err, errno, "--tls-psk '%s': %s", path, strerror(errno));
    }
    *list = calloc(1, sizeof(**list));
    if (*list == NULL) {
        fclose(file);
        return error_set(err, ENOMEM, "out of memory");
    }
    while (result == 0 && fgets(line, sizeof(line), file) != NULL) {
        number++;
        result = psk_add_line(list, line);
    }
    if (result == 0 && (ferror(file) || (*list)->count == 0)) {
        result = error_set(err, EINVAL, "--tls-psk '%s': has no keys; make one with psktool", path);
    } else if (result == -ENOMEM) {
        error_set(err, ENOMEM, "out of memory");
    } else if (result < 0) {
        error_set(err, EINVAL, "--tls-psk '%s': line %u is not NAME:KEY with a hexadecimal key",
                  path, number);
    }
    gnutls_memset(line, 0, sizeof(line));
    fclose(file);
    if (result < 0) {
        psk_list_free(*list);
        *list = NULL;
    }
    return result;
}

// Called by GnuTLS to find the key of a name. Returns 1 if there is none; GnuTLS then continues
// with a random key, so that strangers do not learn which names exist.
static int psk_find(gnutls_session_t session, const char *name, gnutls_datum_t *key)
{
    const struct tls_credentials *credentials = gnutls_session_get_ptr(session);
    const struct tls_psk_list *list = credentials->keys;

    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->keys[i].name, name) == 0) {
            key->data = gnutls_malloc(list->keys[i].key.size);
            if (key->data == NULL) {
                return -1;
            }
            memcpy(key->data, list->keys[i].key.data, list->keys[i].key.size);
            key->size = list->keys[i].key.size;
            return 0;
        }
    }
    return 1;
}

static int load_psk(struct tls_credentials *credentials, const char *path, struct error *err)
{
    int result = psk_read(&credentials->keys, path, err);

    if (result < 0) {
        return result;
    }
    if (gnutls_psk_allocate_server_credentials(&credentials->psk) < 0) {
        return error_set(err, ENOMEM, "out of memory");
    }
    gnutls_psk_set_server_credentials_function(credentials->psk, psk_find);
    gnutls_psk_set_server_known_dh_params(credentials->psk, GNUTLS_SEC_PARAM_MEDIUM);
    return 0;
}

// ---- Certificates -------------------------------------------------------------------------------

// Makes set read a file of the directory. Returns the result of set, with a message if it is
// negative; 0 if the file does not exist and is not needed.
static int load_file(gnutls_certificate_credentials_t certificates, const char *directory,
                     const char *name, bool needed,
                     int (*set)(gnutls_certificate_credentials_t, const char *,
                                gnutls_x509_crt_fmt_t),
                     struct error *err)
{
    char *path;
    int result = 0;

    if (asprintf(&path, "%s/%s", directory, name) < 0) {
        return error_set(err, ENOMEM, "out of memory");
    }
    if (access(path, R_OK) == 0) {
        result = set(certificates, path, GNUTLS_X509_FMT_PEM);
        if (result < 0) {
            result = error_set(err, EINVAL, "--tls-certificates: '%s': %s", path,
                               gnutls_strerror(result));
        }
    } else if (needed || errno != ENOENT) {
        result = error_set(err, errno, "--tls-certificates: '%s': %s", path, strerror(errno));
    }
    free(path);
    return result;
}

// Finds out which of the two files is at fault, by reading the key alone.
static int explain_key_pair(const char *certificate, const char *key, int code, struct error *err)
{
    gnutls_x509_privkey_t parsed = NULL;
    gnutls_datum_t text = {0};
    bool encrypted = false;
    int result = gnutls_load_file(key, &text);

    if (result == 0) {
        encrypted = memmem(text.data, text.size, "ENCRYPTED", strlen("ENCRYPTED")) != NULL;
        result = gnutls_x509_privkey_init(&parsed);
    }
    if (result == 0) {
        result = gnutls_x509_privkey_import2(parsed, &text, GNUTLS_X509_FMT_PEM, NULL, 0);
    }
    gnutls_x509_privkey_deinit(parsed);
    if (text.data != NULL) {
        gnutls_memset(text.data, 0, text.size);
        gnutls_free(text.data);
    }
    if (result < 0 && encrypted) {
        return error_set(
            err, EINVAL,
            "--tls-certificates: '%s': the key is encrypted, and a server has nobody to "
            "ask for its password; decrypt it with 'openssl pkey -in %s -out NEW', for "
            "the server's user alone to read",
            key, key);
    }
    if (result < 0) {
        return error_set(err, EINVAL, "--tls-certificates: '%s': no private key in PEM form: %s",
                         key, gnutls_strerror(result));
    }
    if (code == GNUTLS_E_CERTIFICATE_KEY_MISMATCH) {
        return error_set(err, EINVAL,
                         "--tls-certificates: '%s' is not the key of '%s'; put the two that belong "
                         "together there",
                         key, certificate);
    }
    return error_set(err, EINVAL, "--tls-certificates: '%s': no certificate in PEM form: %s",
                     certificate, gnutls_strerror(code));
}

static int load_key_pair(gnutls_certificate_credentials_t certificates, const char *directory,
                         struct error *err)
{
    char *certificate = NULL;
    char *key = NULL;
    int result = 0;

    if (asprintf(&certificate, "%s/server-cert.pem", directory) < 0) {
        return error_set(err, ENOMEM, "out of memory");
    }
    if (asprintf(&key, "%s/server-key.pem", directory) < 0) {
        free(certificate);
        return error_set(err, ENOMEM, "out of memory");
    }
    if (access(certificate, R_OK) < 0) {
        result =
            error_set(err, errno, "--tls-certificates: '%s': %s", certificate, strerror(errno));
    } else if (access(key, R_OK) < 0) {
        result = error_set(err, errno, "--tls-certificates: '%s': %s", key, strerror(errno));
    } else {
        result = gnutls_certificate_set_x509_key_file(certificates, certificate, key,
                                                      GNUTLS_X509_FMT_PEM);
        if (result < 0) {
            result = explain_key_pair(certificate, key, result, err);
        }
    }
    free(certificate);
    free(key);
    return result;
}

static int load_certificates(struct tls_credentials *credentials, const struct tls_options *options,
                             struct error *err)
{
    int result;

    if (gnutls_certificate_allocate_credentials(&credentials->certificates) < 0) {
        return error_set(err, ENOMEM, "out of memory");
    }
    result = load_key_pair(credentials->certificates, options->certificates, err);
    if (result >= 0) {
        result = load_file(credentials->certificates, options->certificates, "ca-cert.pem",
                           options->verify_peer, gnutls_certificate_set_x509_trust_file, err);
    }
    if (result >= 0) {
        result = load_file(credentials->certificates, options->certificates, "ca-crl.pem", false,
                           gnutls_certificate_set_x509_crl_file, err);
    }
    if (result >= 0) {
        gnutls_certificate_set_known_dh_params(credentials->certificates, GNUTLS_SEC_PARAM_MEDIUM);
    }
    return result < 0 ? result : 0;
}

// ---- Priorities, and loading --------------------------------------------------------------------

// Refuses a FIFO or a device, which would block the loop when the files are read again.
static int check_regular(const char *option, const char *path, struct error *err)
{
    struct stat st;

    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        return error_set(err, EINVAL, "%s: '%s': is no regular file", option, path);
    }
    // A missing file is reported when it is needed.
    return 0;
}

static int tls_credentials_check_files(const struct tls_options *options, struct error *err)
{
    static const char *const names[] = {"server-cert.pem", "server-key.pem", "ca-cert.pem",
                                        "ca-crl.pem"};
    int result = 0;

    if (options->psk != NULL) {
        return check_regular("--tls-psk", options->psk, err);
    }
    for (size_t i = 0; result == 0 && i < sizeof(names) / sizeof(names[0]); i++) {
        char *path;

        if (asprintf(&path, "%s/%s", options->certificates, names[i]) < 0) {
            return error_set(err, ENOMEM, "out of memory");
        }
        result = check_regular("--tls-certificates", path, err);
        free(path);
    }
    return result;
}

// Returns true if the priorities leave a version of TLS and a cipher.
static bool priority_usable(gnutls_priority_t priority)
{
    const unsigned *list;

    return gnutls_priority_protocol_list(priority, &list) > 0 &&
           gnutls_priority_cipher_list(priority, &list) > 0;
}

// Combines the priorities that the user names with ours, which turn versions and ciphers off.
static int named_priority(gnutls_priority_t *out, const char *named, const char *ours,
                          struct error *err)
{
    const char *where = named;
    char *text;
    int result = gnutls_priority_init(out, named, &where);

    if (result < 0) {
        return error_set(err, EINVAL, "--tls-priority '%s': %s at '%s'; see 'gnutls-cli --list'",
                         named, gnutls_strerror(result), where);
    }
    gnutls_priority_deinit(*out);
    if (asprintf(&text, "%s:%s", named, ours) < 0) {
        return error_set(err, ENOMEM, "out of memory");
    }
    result = gnutls_priority_init(out, text, NULL);
    free(text);
    if (result >= 0 && priority_usable(*out)) {
        return 0;
    }
    if (result >= 0) {
        gnutls_priority_deinit(*out);
    }
    return error_set(err, EINVAL,
                     "--tls-priority '%s': leaves no version from TLS 1.2 on, or no cipher", named);
}

static int load_priority(struct tls_credentials *credentials, const struct tls_options *options,
                         struct error *err)
{
    const char *ours = options->psk != NULL ? PRIORITY_PSK : PRIORITY_CERTIFICATES;
    gnutls_priority_t priority;
    const char *where;
    int result;

    if (options->priority != NULL) {
        result = named_priority(&priority, options->priority, ours, err);
        if (result < 0) {
            return result;
        }
    } else if ((result = gnutls_priority_init2(&priority, ours, &where,
                                               GNUTLS_PRIORITY_INIT_DEF_APPEND)) < 0) {
        return error_set(err, EINVAL, "GnuTLS does not take its priorities: %s",
                         gnutls_strerror(result));
    }
    credentials->priority = priority;
    return 0;
}

// Checks that the files are good at the time now.
static int check_content(struct tls_credentials *credentials, const struct tls_options *options,
                         time_t now, struct error *err)
{
    if (options->psk != NULL) {
        credentials->check.expires = TLS_NEVER;
        tls_check_secret(&credentials->check, options->psk);
        return 0;
    }
    return tls_check_directory(&credentials->check, options->certificates, options->verify_peer,
                               now, err);
}

int tls_credentials_load(struct tls_credentials **out, const struct tls_options *options,
                         time_t now, struct error *err)
{
    struct tls_credentials *credentials;
    int result = tls_credentials_check_files(options, err);

    assert((options->psk != NULL) != (options->certificates != NULL));
    if (result < 0) {
        return result;
    }
    credentials = calloc(1, sizeof(*credentials));
    if (credentials == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    credentials->references = 1;
    credentials->verify_peer = options->verify_peer && options->psk == NULL;
    result = options->psk != NULL ? load_psk(credentials, options->psk, err)
                                  : load_certificates(credentials, options, err);
    if (result == 0) {
        result = check_content(credentials, options, now, err);
    }
    if (result == 0) {
        result = load_priority(credentials, options, err);
    }
    if (result < 0) {
        tls_credentials_drop(credentials);
        return result;
    }
    *out = credentials;
    return 0;
}

void tls_credentials_drop(struct tls_credentials *credentials)
{
    assert(credentials->references > 0);
    if (--credentials->references > 0) {
        return;
    }
    if (credentials->certificates != NULL) {
        gnutls_certificate_free_credentials(credentials->certificates);
    }
    if (credentials->psk != NULL) {
        gnutls_psk_free_server_credentials(credentials->psk);
    }
    if (credentials->priority != NULL) {
        gnutls_priority_deinit(credentials->priority);
    }
    psk_list_free(credentials->keys);
    free(credentials);
}

int tls_credentials_use(struct tls_credentials *credentials, gnutls_session_t session)
{
    static gnutls_typed_vdata_st purpose = {
        .type = GNUTLS_DT_KEY_PURPOSE_OID,
        .data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT,
    };
    int result = gnutls_priority_set(session, credentials->priority);

    if (result < 0) {
        return result;
    }
    gnutls_session_set_ptr(session, credentials);
    if (credentials->psk != NULL) {
        return gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials->psk);
    }
    if (credentials->verify_peer) {
        gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
        gnutls_session_set_verify_cert2(session, &purpose, 1, 0);
    }
    return gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials->certificates);
}
