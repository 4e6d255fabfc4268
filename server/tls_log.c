// SPDX-License-Identifier: Apache-2.0
#include "server/tls_log.h"

#include "server/tls_check.h"

void tls_log_warnings(const struct tls_server *server, struct log *log)
{
    const char *warning;

    for (size_t i = 0; (warning = tls_server_warning(server, i)) != NULL; i++) {
        log_line(log, LOG_LEVEL_WARNING, "%s", warning);
    }
}

void tls_log_expired(const struct tls_server *server, struct log *log, time_t now, time_t *said)
{
    char date[TLS_DATE_LENGTH];

    if (now <= tls_server_expires(server) ||
        (*said != 0 && now >= *said && now - *said < TLS_EXPIRED_AGAIN)) {
        return;
    }
    *said = now;
    log_line(
        log, LOG_LEVEL_ERROR,
        "the server's certificate expired at %s, and clients refuse it; renew it and send SIGHUP",
        tls_date(tls_server_expires(server), date));
}
