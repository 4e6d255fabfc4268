// SPDX-License-Identifier: Apache-2.0
// tls_log.h: log lines about certificates.
#ifndef LAZYCOW_SERVER_TLS_LOG_H
#define LAZYCOW_SERVER_TLS_LOG_H

#include <time.h>

#include "server/log.h"
#include "server/tls.h"

// Seconds between two log lines about a certificate that has expired while the server runs; they
// are written when clients come.
#define TLS_EXPIRED_AGAIN (24 * 3600)

// Logs the warnings about the files that were read last.
void tls_log_warnings(const struct tls_server *server, struct log *log);

// Called when a client begins a handshake; now is in seconds since 1970. *said is the time of the
// last log line about an expired certificate, 0 at first.
void tls_log_expired(const struct tls_server *server, struct log *log, time_t now, time_t *said);

#endif
