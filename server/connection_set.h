// SPDX-License-Identifier: Apache-2.0
// connection_set.h: runs the turns of all connections, and enforces their limits and deadlines.
#ifndef LAZYCOW_SERVER_CONNECTION_SET_H
#define LAZYCOW_SERVER_CONNECTION_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "server/connection.h"

// Connections that may negotiate at a time, somewhat more than QEMU allows (100). A negotiation
// takes a few round trips; further connections wait to be accepted. If the client of one has been
// silent for HALF_OPEN_SILENCE_MS, it gives way, so silent clients cannot keep others out. A client
// on a busy machine may need seconds for its part of a handshake and must not be mistaken for a
// silent one. 128 silent connections, at some 0.5 MiB each with TLS, hold 64 MiB, and 40 of them
// give way each second.
#define HALF_OPEN_MAX 128u
#define HALF_OPEN_SILENCE_MS 3000u
// Milliseconds that a client has for the negotiation, as in QEMU since CVE-2024-7409. Handshakes
// that wait for a thread of the server do not use them up.
#define HANDSHAKE_DEADLINE_MS 10000u
// Connections that may be leaving without counting against --max-connections. Further ones do
// count: a client that ends its side and never takes its replies could otherwise have any number of
// connections.
#define LEAVING_FREE 32u
// Milliseconds without taking any reply after which a connection is closed if another one cannot
// get memory, or if its client has ended: by then it is stuck or hostile.
#define STUCK_MS 30000u
// Milliseconds that clients have at a stop to take their last replies and to end.
#define STOP_DEADLINE_MS 3000u
// Interval in milliseconds at which lingering connections are checked.
#define CONNECTION_SET_LINGER_MS 25u

// uv, shared, tls (may be NULL) and log are borrowed. emptied runs each time that the last
// connection of the set was freed.
void connection_set_init(struct connection_set *set, uv_loop_t *uv, struct client_shared *shared,
                         const struct tls_server *tls, struct log *log, unsigned served_max,
                         void (*emptied)(void *context), void *context);

// Returns true if one more connection may be accepted now; makes room for it where possible.
bool connection_set_room(struct connection_set *set);

// Returns true if one more connection may be served. Before it refuses, it looks for clients that
// have ended but whose end was not read yet.
bool connection_set_place(struct connection_set *set);

// Looks for clients that have ended, so that they give their places back.
void connection_set_find_ended(struct connection_set *set);

// Takes over an accepted socket. Closes it at once if too many are served.
void connection_set_add(struct connection_set *set, int fd);

// Sends all output, and runs the clients that it made room for. Returns bits of enum loop_turn.
unsigned connection_set_turn(struct connection_set *set);

// Settles all replies that wait to be sent (client.h).
void connection_set_settle(struct connection_set *set);

// Called about once a second: enforces deadlines, and settles all replies that wait to be sent.
// Returns true if there are connections.
bool connection_set_tick(struct connection_set *set, uint64_t now);

// Reads no further request; each connection ends when its requests are done and their replies sent.
// From now on connection_set_turn() must be called at least every CONNECTION_SET_LINGER_MS.
void connection_set_stop(struct connection_set *set);

#endif
