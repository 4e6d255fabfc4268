// SPDX-License-Identifier: Apache-2.0
// listen.h: opens the sockets that clients connect to.
#ifndef LAZYCOW_SERVER_LISTEN_H
#define LAZYCOW_SERVER_LISTEN_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "server/listeners.h"

// The port registered for NBD ("Baseline").
#define LISTEN_PORT_DEFAULT 10809
// The first descriptor of socket activation, sd_listen_fds(3).
#define LISTEN_FDS_START 3

// Returns how many descriptors socket activation has handed to this process, from the environment
// (LISTEN_PID, LISTEN_FDS); 0: none.
unsigned listen_activated(void);

// Takes over count descriptors of socket activation, at most LISTEN_MAX, and checks them. listeners
// need not be initialised. Returns 0, or a negative errno with a message; nothing is open then.
int listen_take(struct listeners *listeners, unsigned count, struct error *err);

// Appends a socket for every address of the host; host NULL: localhost. port 0: any port, the same
// for all addresses. With alone, the IPv6 address :: takes IPv4, too.
//
// Returns 0, or a negative errno with a message; then listeners are as before the call.
// listen_unix() and listen_vsock() return so, too.
int listen_tcp(struct listeners *listeners, const char *host, uint16_t port, bool alone,
               struct error *err);

// Returns the URI of an export (doc/uri.md of NetworkBlockDevice/nbd) as reached through the
// listener, allocated; tls: clients must use TLS. NULL without memory, or if no URI can name the
// socket.
char *listen_uri(const struct listener *listener, const char *export_name, bool tls);

#endif
