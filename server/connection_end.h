// SPDX-License-Identifier: Apache-2.0
// connection_end.h: how a connection ends: at once, behind its last reply, or behind that of a stop.
#ifndef LAZYCOW_SERVER_CONNECTION_END_H
#define LAZYCOW_SERVER_CONNECTION_END_H

#include "server/connection.h"

// Closes the socket and drops the client. The connection is freed when its last op has finished;
// that may be at once. reason is for the log.
void connection_close(struct connection *connection, const char *reason);

// The same to a client that has not brought its negotiation to an end; the operator is told.
void connection_give_up(struct connection *connection, const char *reason);

// Ends a connection whose last reply was sent.
void connection_end(struct connection *connection);

// Goes on with a connection that lingers: closes it when the peer has ended, or has been silent for a
// moment and has got everything.
void connection_linger(struct connection *connection);

// Frees a connection that was closed, unless something is still under way that will call this.
void connection_free_if_done(struct connection *connection);

// Takes what was only looked at out of the socket. Returns 0 or a positive errno.
int connection_take_peeked(struct connection *connection);

#endif
