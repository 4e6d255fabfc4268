// SPDX-License-Identifier: Apache-2.0
// tls_check.h: whether the certificates of a directory are good for a server now. A client would refuse
// those that are not, and its message does not say what to do here.
#ifndef LAZYCOW_SERVER_TLS_CHECK_H
#define LAZYCOW_SERVER_TLS_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "qcow2/base/error.h"

// When what never expires does.
#define TLS_NEVER ((time_t)INT64_MAX)
// What is found at once, each kind one time.
#define TLS_WARNINGS_MAX 8
// A name of a file, a date and a sentence.
#define TLS_WARNING_LENGTH 512

struct tls_check {
    time_t expires; // when the first of the certificates that clients need does
    size_t warning_count;
    char warnings[TLS_WARNINGS_MAX][TLS_WARNING_LENGTH];
};

// Looks at server-cert.pem with the chain behind it, at server-key.pem, and at ca-cert.pem and
// ca-crl.pem where there are; now is seconds since 1970. Returns 0, or a negative errno with a message:
// no client could connect.
int tls_check_directory(struct tls_check *check, const char *directory, bool verify_peer,
                        time_t now, struct error *err);

// A file with keys in it that everybody may read is warned of.
void tls_check_secret(struct tls_check *check, const char *path);

// "2026-11-28 10:00:00 UTC"
#define TLS_DATE_LENGTH 32
const char *tls_date(time_t time, char text[TLS_DATE_LENGTH]);

#endif
