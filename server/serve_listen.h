// SPDX-License-Identifier: Apache-2.0
// serve_listen.h: opens the sockets that the command line of `lazycow serve` asks for.
#ifndef LAZYCOW_SERVER_SERVE_LISTEN_H
#define LAZYCOW_SERVER_SERVE_LISTEN_H

#include <stdbool.h>

#include "qcow2/base/error.h"
#include "server/listen.h"
#include "server/serve_settings.h"

struct start_watch;

// Returns true if the command line names an address or a socket.
bool serve_listen_given(const struct serve_listen *listen);

// Opens every socket. listeners need not be initialised. The watch ends before a path is made.
// Returns 0, or a negative errno with a message; nothing is open then.
int serve_listen_open(const struct serve_listen *listen, struct start_watch *watch,
                      struct listeners *listeners, struct error *err);

#endif
