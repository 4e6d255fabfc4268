// SPDX-License-Identifier: Apache-2.0
// listen_vsock.h: AF_VSOCK, the sockets between a virtual machine and its host (vsock(7)).
#ifndef LAZYCOW_SERVER_LISTEN_VSOCK_H
#define LAZYCOW_SERVER_LISTEN_VSOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "server/listeners.h"

// A machine's number and a port there.
struct vsock_address {
    uint32_t cid;
    uint32_t port;
};

// Parses [CID:]PORT. Without CID, every address of this machine is meant; port 0 is any free one.
// Returns false for anything else.
bool vsock_address_parse(const char *text, struct vsock_address *address);

// Return the addresses of a vsock socket's own end and of its peer's end; false for a socket of
// another family.
bool vsock_address_own(int fd, struct vsock_address *address);
bool vsock_address_peer(int fd, struct vsock_address *address);

// Returns the number under which this machine is reached: its own for a guest, 2 for a host, and 1,
// which stands for the machine itself, for a machine that is neither.
uint32_t vsock_local_cid(void);

// Names the listener after the address that its vsock socket is bound to. Returns 0, or a negative
// errno with a message.
int listen_vsock_name(struct listener *listener, struct error *err);

// Appends the socket of an address. Port 0: any. Returns as listen_unix().
int listen_vsock(struct listeners *listeners, const struct vsock_address *address,
                 struct error *err);

#endif
