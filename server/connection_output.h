// SPDX-License-Identifier: Apache-2.0
// connection_output.h: from a connection's client, or TLS, to its socket.
#ifndef LAZYCOW_SERVER_CONNECTION_OUTPUT_H
#define LAZYCOW_SERVER_CONNECTION_OUTPUT_H

#include <stdbool.h>

#include "server/connection.h"

// Calls of sendmsg for one connection in one turn, so that a fast receiver of large reads does not
// keep the others waiting.
#define CONNECTION_SEND_ROUNDS 4

bool connection_output_pending(struct connection *connection);

// Sends until the socket is full, all is sent, or it is the others' turn. Returns false when the
// connection is lost.
bool connection_send(struct connection *connection);

// Settles the replies that wait to be sent (client.h). Returns false when that ended the connection.
bool connection_settle(struct connection *connection);

#endif
