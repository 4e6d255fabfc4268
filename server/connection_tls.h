// SPDX-License-Identifier: Apache-2.0
// connection_tls.h: TLS between a connection's socket and its client.
#ifndef LAZYCOW_SERVER_CONNECTION_TLS_H
#define LAZYCOW_SERVER_CONNECTION_TLS_H

#include <stdbool.h>

#include "server/connection.h"

// Those that return false have closed the connection, or had nothing to do.

// The client wants TLS, and what it has said before was sent: ciphertext is received from now on.
bool connection_tls_begin(struct connection *connection);
// Goes on with the handshake after ciphertext came: on a worker thread, for a signature may take
// milliseconds. The connection neither receives nor sends until that has ended.
void connection_tls_handshake(struct connection *connection);
// Takes the client's output into TLS, as far as there is room.
bool connection_tls_write(struct connection *connection);
// Gives the client plaintext, or its end. False, too, when there is none or it takes none.
bool connection_tls_read(struct connection *connection);

// Releases TLS, now or when the handshake's step has ended; for connection_close().
void connection_tls_end(struct connection *connection);

#endif
