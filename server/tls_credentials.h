// SPDX-License-Identifier: Apache-2.0
// tls_credentials.h: keys and certificates from files, as GnuTLS takes them. Connections share the
// credentials that they began with.
#ifndef LAZYCOW_SERVER_TLS_CREDENTIALS_H
#define LAZYCOW_SERVER_TLS_CREDENTIALS_H

#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <time.h>

#include "qcow2/base/error.h"
#include "server/tls_check.h"
#include "server/tls_options.h"

struct tls_psk_list;

struct tls_credentials {
    unsigned references;
    gnutls_certificate_credentials_t certificates; // or NULL
    gnutls_psk_server_credentials_t psk;           // or NULL
    // Keys that psk uses.
    struct tls_psk_list *keys;
    gnutls_priority_t priority;
    bool verify_peer;
    struct tls_check check;
};

// The options and credentials that new connections begin with (tls.h).
struct tls_server {
    struct tls_options options;
    struct tls_credentials *credentials;
};

// Reads the files that options name, and checks that they are good at that time. Returns 0, with
// one reference for the caller, or a negative errno with a message.
int tls_credentials_load(struct tls_credentials **out, const struct tls_options *options,
                         time_t now, struct error *err);
void tls_credentials_drop(struct tls_credentials *credentials);

// Applies the credentials to a session: the server's offers and its demands on the peer. Returns 0
// or a GnuTLS error, negative.
int tls_credentials_use(struct tls_credentials *credentials, gnutls_session_t session);

#endif
