// SPDX-License-Identifier: Apache-2.0
// listen.h: the sockets that clients connect to.
#ifndef LAZYCOW_SERVER_LISTEN_H
#define LAZYCOW_SERVER_LISTEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "qcow2/base/error.h"
#include "server/listen_vsock.h"

// Port registered for NBD ("Baseline").
#define LISTEN_PORT_DEFAULT 10809
// Sockets of one server: a service manager hands over a few, and a host name has a few addresses.
#define LISTEN_MAX 64
// The first descriptor of socket activation, sd_listen_fds(3).
#define LISTEN_FDS_START 3

enum listener_family { LISTENER_OTHER, LISTENER_TCP, LISTENER_UNIX, LISTENER_VSOCK };

struct listener {
    int fd; // listening, non-blocking; -1 once closed
    enum listener_family family;
    char *authority; // TCP, vsock: HOST:PORT or CID:PORT as it stands in a URI; else NULL
    char *path;      // Unix: absolute; NULL where it has none
    bool announce;   // stands for itself in the ready lines, not another address of the same name
    bool unlink;     // the path is ours to remove
    dev_t device;    // of the path, to know whether it is still ours
    ino_t inode;
};

struct listeners {
    struct listener list[LISTEN_MAX];
    size_t count;
};

// What the environment says of socket activation (LISTEN_PID, LISTEN_FDS): how many descriptors
// were handed over to this process, 0 for none.
unsigned listen_activated(void);

// Takes over count descriptors of socket activation, at most LISTEN_MAX, and checks them. listeners
// need not be initialised. Returns 0, or a negative errno with a message; nothing is open then.
int listen_take(struct listeners *listeners, unsigned count, struct error *err);

// Each appends to listeners. Returns 0, or a negative errno with a message; listeners are what they
// were before then.

// Every address of the host; host NULL: localhost. port 0: any, the same for all addresses. With
// alone, the IPv6 address :: takes IPv4, too.
int listen_tcp(struct listeners *listeners, const char *host, uint16_t port, bool alone,
               struct error *err);

// Who may connect to a Unix socket; each field may be LISTEN_UNIX_AS_IS.
struct listen_unix_access {
    mode_t mode;
    gid_t group;
};
#define LISTEN_UNIX_AS_IS UINT32_MAX

// A Unix socket. One that nobody listens on is replaced, one that is alive is not.
int listen_unix(struct listeners *listeners, const char *path,
                const struct listen_unix_access *access, struct error *err);

// A vsock address. Port 0: any.
int listen_vsock(struct listeners *listeners, const struct vsock_address *address,
                 struct error *err);

// Closes the sockets, removes the paths of our own.
void listen_close(struct listeners *listeners);

// For those who append: a listener for a descriptor, and back to how many there were.
struct listener *listen_add(struct listeners *listeners, int fd);
void listen_truncate(struct listeners *listeners, size_t count);

// The URI of an export (doc/uri.md of NetworkBlockDevice/nbd) as reached through the listener, with
// tls where clients must use that; allocated. NULL without memory, or where no URI can name the
// socket.
char *listen_uri(const struct listener *listener, const char *export_name, bool tls);

#endif
