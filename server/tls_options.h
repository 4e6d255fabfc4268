// SPDX-License-Identifier: Apache-2.0
// tls_options.h: which keys and certificates TLS uses, from the command line.
#ifndef LAZYCOW_SERVER_TLS_OPTIONS_H
#define LAZYCOW_SERVER_TLS_OPTIONS_H

#include <stdbool.h>

// The longest text that says who a peer is, in bytes with the NUL; longer names are refused.
#define TLS_IDENTITY_MAX 1024

struct tls_options {
    // One of the two. A directory with server-cert.pem and server-key.pem, and where there are
    // ca-cert.pem and ca-crl.pem; or a file of lines NAME:KEY, the key in hexadecimal digits.
    const char *certificates;
    const char *psk;
    bool verify_peer; // demand a certificate that ca-cert.pem vouches for
    // In the words of GnuTLS: which of its algorithms are used; NULL: those that the system's policy
    // names. Versions before TLS 1.2 stay off.
    const char *priority;
};

#endif
