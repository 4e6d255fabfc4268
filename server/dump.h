// SPDX-License-Identifier: Apache-2.0
// dump.h: what the server is doing, to the log, on SIGUSR1: each connection, and each image with its
// requests and what they wait for.
#ifndef LAZYCOW_SERVER_DUMP_H
#define LAZYCOW_SERVER_DUMP_H

struct connection_set;
struct exports;
struct log;

// Connections in one dump; the others are counted.
#define DUMP_CONNECTIONS_MAX 200u

// The lines have level error, so that they are written whatever the level of the log.
void dump_server(const struct connection_set *connections, const struct exports *exports,
                 struct log *log);

#endif
