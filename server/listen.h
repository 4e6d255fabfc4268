// SPDX-License-Identifier: Apache-2.0
// listen.h: the sockets that clients connect to.
#ifndef LAZYCOW_SERVER_LISTEN_H
#define LAZYCOW_SERVER_LISTEN_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "server/listeners.h"

// Port registered for NBD ("Baseline").
#define LISTEN_PORT_DEFAULT 10809
// The first descriptor of socket activation, sd_listen_fds(3).
#define LISTEN_FDS_START 3

// What the environment says of socket activation (LISTEN_PID, LISTEN_FDS): how many descriptors
// were handed over to this process, 0 for none.
unsigned listen_activated(void);

// Takes over count descriptors of socket activation, at most LISTEN_MAX, and checks them. listeners
// need not be initialised. Returns 0, or a negative errno with a message; nothing is open then.
int listen_take(struct listeners *listeners, unsigned count, struct error *err);

// Appends to listeners, as listen_unix() and listen_vsock() do. Returns 0, or a negative errno with a
// message; listeners are what they were before then.
//
// Every address of the host; host NULL: localhost. port 0: any, the same for all addresses. With
// alone, the IPv6 address :: takes IPv4, too.
int listen_tcp(struct listeners *listeners, const char *host, uint16_t port, bool alone,
               struct error *err);

// The URI of an export (doc/uri.md of NetworkBlockDevice/nbd) as reached through the listener, with
// tls where clients must use that; allocated. NULL without memory, or where no URI can name the
// socket.
char *listen_uri(const struct listener *listener, const char *export_name, bool tls);

#endif
