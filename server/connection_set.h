// SPDX-License-Identifier: Apache-2.0
// connection_set.h: what is done for all connections together: their turns, limits and end.
#ifndef LAZYCOW_SERVER_CONNECTION_SET_H
#define LAZYCOW_SERVER_CONNECTION_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "server/connection.h"

// Connections that are negotiating, somewhat more than QEMU allows (100). A negotiation takes a few
// round trips; when so many are at it, further ones wait to be accepted. One whose client has been
// silent for HALF_OPEN_SILENCE_MS then gives way: so clients that say nothing cannot keep others out.
// A client on a busy machine may need seconds for its part of a handshake and must not be taken for
// one of these. So many silent ones, at some 0.5 MiB each with TLS, hold 64 MiB, and 40 a second give
// way.
#define HALF_OPEN_MAX 128u
#define HALF_OPEN_SILENCE_MS 3000u
// Milliseconds that the client has for the negotiation, as in QEMU since CVE-2024-7409. Handshakes that
// wait for a thread of ours do not use them up.
#define HANDSHAKE_DEADLINE_MS 10000u
// Connections that are leaving and take no place from others. More of them do: a client that ends its
// side and never takes its replies would have as many as it likes.
#define LEAVING_FREE 32u
// A connection that has taken none of its replies for so many milliseconds is closed if another
// one cannot get memory, or if its client has ended: by then it is stuck or hostile.
#define STUCK_MS 30000u
// Milliseconds that clients have to take their last replies when the server stops, and to end.
#define STOP_DEADLINE_MS 3000u
// How often connections that linger are looked at, in milliseconds.
#define CONNECTION_SET_LINGER_MS 25u

// uv, shared, tls (may be NULL) and log are borrowed. emptied runs when the last connection of a
// stopping set, or of one that is not, was freed.
void connection_set_init(struct connection_set *set, uv_loop_t *uv, struct client_shared *shared,
                         const struct tls_server *tls, struct log *log, unsigned served_max,
                         void (*emptied)(void *context), void *context);

// Whether one more may be accepted now; makes room for it where it can.
bool connection_set_room(struct connection_set *set);

// Whether one more may be served. Before it says no it looks for clients that have ended: their end
// may have come, and not been read yet, when the next client is there.
bool connection_set_place(struct connection_set *set);

// Looks for clients that have ended, so that they give their places back.
void connection_set_find_ended(struct connection_set *set);

// Takes over a socket that was accepted. Closes it at once where too many are served.
void connection_set_add(struct connection_set *set, int fd);

// Sends all output, and lets clients go on that it made room for. Returns bits of enum loop_turn.
unsigned connection_set_turn(struct connection_set *set);

// Settles all replies that wait to be sent (client.h).
void connection_set_settle(struct connection_set *set);

// About once a second: deadlines, and the same. Returns whether there are connections.
bool connection_set_tick(struct connection_set *set, uint64_t now);

// No further request is read; each connection ends when its requests are done and their replies sent.
// connection_set_turn() is to be called at least every CONNECTION_SET_LINGER_MS from here on.
void connection_set_stop(struct connection_set *set);

#endif
