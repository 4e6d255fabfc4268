// SPDX-License-Identifier: Apache-2.0
// tls_check.h: checks that the certificates of a directory are good for a server now. A client
// would refuse bad ones, with a message that does not tell the server's operator how to replace
// them.
#ifndef LAZYCOW_SERVER_TLS_CHECK_H
#define LAZYCOW_SERVER_TLS_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "qcow2/base/error.h"

// Expiry of certificates that never expire.
#define TLS_NEVER ((time_t)INT64_MAX)
// Most warnings of one check, one of each kind.
#define TLS_WARNINGS_MAX 8
// Room for the name of a file, a date and a sentence.
#define TLS_WARNING_LENGTH 512

struct tls_check {
    // Time when the first of the certificates that clients need expires.
    time_t expires;
    size_t warning_count;
    char warnings[TLS_WARNINGS_MAX][TLS_WARNING_LENGTH];
};

// Checks server-cert.pem with the chain behind it, server-key.pem, and ca-cert.pem and ca-crl.pem
// if they exist; now is in seconds since 1970. Returns 0, or a negative errno with a message if no
// client could connect.
int tls_check_directory(struct tls_check *check, const char *directory, bool verify_peer,
                        time_t now, struct error *err);

// Adds a warning if a file with keys is readable by everybody.
void tls_check_secret(struct tls_check *check, const char *path);

// Length of "2026-11-28 10:00:00 UTC" and the like.
#define TLS_DATE_LENGTH 32
const char *tls_date(time_t time, char text[TLS_DATE_LENGTH]);

#endif
