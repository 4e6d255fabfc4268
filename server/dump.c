// SPDX-License-Identifier: Apache-2.0
#include "server/dump.h"

#include "qcow2/dump.h"
#include "server/client.h"
#include "server/connection.h"
#include "server/export.h"
#include "server/log.h"

// Longest description of a client, in bytes.
#define CLIENT_TEXT_MAX 300

static void dump_connections(const struct connection_set *set, struct log *log)
{
    const struct connection *connection;
    unsigned said = 0;

    log_line(log, LOG_LEVEL_ERROR, "dump: %u connections, %u of them past negotiation", set->alive,
             set->counts[CONNECTION_SERVED] + set->counts[CONNECTION_LEAVING]);
    TAILQ_FOREACH (connection, &set->open, open_link) {
        char text[CLIENT_TEXT_MAX];

        if (said++ == DUMP_CONNECTIONS_MAX) {
            log_line(log, LOG_LEVEL_ERROR, "dump: and more connections");
            return;
        }
        client_describe(connection->client, text, sizeof(text));
        log_line(log, LOG_LEVEL_ERROR, "dump: %s: %s, %s, %s; %s%s", connection->name,
                 connection_state_names[connection->state],
                 connection_standing_names[connection->standing],
                 connection_tls_names[connection->tls_state], text,
                 connection->blocked ? "; its socket takes no more" : "");
    }
}

struct image_lines {
    struct log *log;
    const char *export;
};

static void dump_say(void *context, const char *text)
{
    const struct image_lines *lines = context;

    log_line(lines->log, LOG_LEVEL_ERROR, "dump: export '%s': %s", lines->export, text);
}

void dump_server(const struct connection_set *connections, const struct exports *exports,
                 struct log *log)
{
    dump_connections(connections, log);
    for (size_t i = 0; i < exports->count; i++) {
        struct image_lines lines = {.log = log, .export = exports->list[i].name};

        image_dump(exports->list[i].image, dump_say, &lines);
    }
}
