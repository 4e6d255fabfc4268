// SPDX-License-Identifier: Apache-2.0
// connection_tls.h: TLS between a connection's socket and its client.
#ifndef LAZYCOW_SERVER_CONNECTION_TLS_H
#define LAZYCOW_SERVER_CONNECTION_TLS_H

#include <stdbool.h>

#include "server/connection.h"

// Functions that return false have closed the connection, or had nothing to do.

// The client wants TLS, and its earlier output was sent: ciphertext is received from now on.
bool connection_tls_begin(struct connection *connection);
// Continues the handshake after ciphertext came. The step runs on a worker thread, since a
// signature may take milliseconds; until it ends, the connection neither receives nor sends.
void connection_tls_handshake(struct connection *connection);
// Takes the client's output into TLS as far as there is room.
bool connection_tls_write(struct connection *connection);
// Gives the client plaintext, or its end. False, too, when there is no plaintext or no room for it.
bool connection_tls_read(struct connection *connection);

// Releases TLS, now or when the handshake's step has ended; for connection_close().
void connection_tls_end(struct connection *connection);

#endif
