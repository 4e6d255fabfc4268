// SPDX-License-Identifier: Apache-2.0
// connection_end.h: the ways in which a connection ends: at once, or behind its last reply.
#ifndef LAZYCOW_SERVER_CONNECTION_END_H
#define LAZYCOW_SERVER_CONNECTION_END_H

#include "server/connection.h"

// Closes the socket and drops the client. The connection is freed when its last op has finished,
// which may be at once. reason is for the log.
void connection_close(struct connection *connection, const char *reason);

// Closes a connection that has not finished its negotiation, and tells the operator.
void connection_give_up(struct connection *connection, const char *reason);

// Ends a connection behind its last reply, which was sent.
void connection_end(struct connection *connection);

// Continues a connection that lingers: closes it when the peer has ended, or has received
// everything and been silent for CONNECTION_LINGER_MS.
void connection_linger(struct connection *connection);

// Frees a closed connection, unless an op or a handshake step that still runs will call this.
void connection_free_if_done(struct connection *connection);

// Removes bytes that were only peeked at from the socket. Returns 0 or a positive errno.
int connection_take_peeked(struct connection *connection);

#endif
