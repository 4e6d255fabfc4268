// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // struct ucred
#include "server/peer.h"

#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/listen_vsock.h"

void peer_name(int fd, char *name, size_t size)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } address;
    socklen_t length = sizeof(address);
    struct vsock_address vsock;
    struct ucred peer;
    char host[NI_MAXHOST];
    char port[8];

    if (getpeername(fd, &address.any, &length) < 0) {
        snprintf(name, size, "gone");
        return;
    }
    if (address.any.sa_family == AF_UNIX) {
        length = sizeof(peer);
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0) {
            snprintf(name, size, "unix");
        } else if (peer.pid == getpid()) {
            snprintf(name, size, "standard input"); // passed on by server/stdio_client.h
        } else {
            snprintf(name, size, "process %ld of user %ld", (long)peer.pid, (long)peer.uid);
        }
        return;
    }
    if (vsock_address_peer(fd, &vsock)) {
        snprintf(name, size, "vsock:%u:%u", vsock.cid, vsock.port);
        return;
    }
    if (getnameinfo(&address.any, length, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        snprintf(name, size, "unknown address");
        return;
    }
    snprintf(name, size, address.any.sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}
