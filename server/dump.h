// SPDX-License-Identifier: Apache-2.0
// dump.h: writes the state of the server to the log on SIGUSR1: each connection, and each image
// with its requests and the event that each one waits for.
#ifndef LAZYCOW_SERVER_DUMP_H
#define LAZYCOW_SERVER_DUMP_H

struct connection_set;
struct exports;
struct log;

// Connections described in one dump; further ones are only counted.
#define DUMP_CONNECTIONS_MAX 200u

// The lines have level error, so that every log level shows them.
void dump_server(const struct connection_set *connections, const struct exports *exports,
                 struct log *log);

#endif
