// SPDX-License-Identifier: Apache-2.0
// tls_options.h: the keys and certificates that the command line names for TLS.
#ifndef LAZYCOW_SERVER_TLS_OPTIONS_H
#define LAZYCOW_SERVER_TLS_OPTIONS_H

#include <stdbool.h>

// Room for a peer's identity, in bytes with the NUL; longer names are refused.
#define TLS_IDENTITY_MAX 1024

struct tls_options {
    // One of the two is set: a directory with server-cert.pem and server-key.pem, perhaps with
    // ca-cert.pem and ca-crl.pem; or a file of lines NAME:KEY, the key in hexadecimal digits.
    const char *certificates;
    const char *psk;
    bool verify_peer; // demand a certificate that an authority in ca-cert.pem has signed
    // Algorithms in GnuTLS's syntax of priorities; NULL: those of the system's policy. Versions
    // before TLS 1.2 stay off.
    const char *priority;
};

#endif
