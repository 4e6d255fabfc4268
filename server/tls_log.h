// SPDX-License-Identifier: Apache-2.0
// tls_log.h: what the log says of certificates.
#ifndef LAZYCOW_SERVER_TLS_LOG_H
#define LAZYCOW_SERVER_TLS_LOG_H

#include <time.h>

#include "server/log.h"
#include "server/tls.h"

// A certificate that has expired while the server runs is told of so often, in seconds, while clients
// come.
#define TLS_EXPIRED_AGAIN (24 * 3600)

// What is doubtful in the files that were read last.
void tls_log_warnings(const struct tls_server *server, struct log *log);

// A client begins a handshake at that time, in seconds since 1970. *said is when it was last told that
// a certificate has expired, 0 at first.
void tls_log_expired(const struct tls_server *server, struct log *log, time_t now, time_t *said);

#endif
