// SPDX-License-Identifier: Apache-2.0
// tls_credentials.h: keys and certificates from files, as GnuTLS takes them. Shared by the
// connections that began with them.
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
    struct tls_psk_list *keys;                     // of psk
    gnutls_priority_t priority;
    bool verify_peer;
    struct tls_check check;
};

// What new connections begin with (tls.h).
struct tls_server {
    struct tls_options options;
    struct tls_credentials *credentials;
};

// Reads the files that options name, and looks whether they are good at that time. Returns 0, with one reference for the caller, or a negative
// errno with a message.
int tls_credentials_load(struct tls_credentials **out, const struct tls_options *options,
                         time_t now, struct error *err);
void tls_credentials_drop(struct tls_credentials *credentials);

// Sets a session up to use them: what is offered and what is asked of the peer. Returns a GnuTLS
// error, negative, or 0.
int tls_credentials_use(struct tls_credentials *credentials, gnutls_session_t session);

#endif
