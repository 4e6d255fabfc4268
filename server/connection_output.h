// SPDX-License-Identifier: Apache-2.0
// connection_output.h: sends the output of a connection's client, or of its TLS, to the socket.
#ifndef LAZYCOW_SERVER_CONNECTION_OUTPUT_H
#define LAZYCOW_SERVER_CONNECTION_OUTPUT_H

#include <stdbool.h>

#include "server/connection.h"

// Calls of sendmsg for one connection in one turn, so that a fast receiver of large reads does not
// delay the others.
#define CONNECTION_SEND_ROUNDS 4

bool connection_output_pending(struct connection *connection);

// Sends until the socket is full, all output is sent or CONNECTION_SEND_ROUNDS are used up. Returns
// false when the connection is lost.
bool connection_send(struct connection *connection);

// Settles the replies that wait to be sent (client.h). Returns false if that ended the connection.
bool connection_settle(struct connection *connection);

#endif
