// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // asprintf
#include "server/listen_vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

// The header uses struct sockaddr of <sys/socket.h>.
#include <linux/vm_sockets.h>

// ---- Addresses ----------------------------------------------------------------------------------

// Reads a decimal number of 32 bits. The largest is refused: it stands for "any".
static bool parse_number(const char *text, const char **end, uint32_t *out)
{
    unsigned long value;
    char *after;

    if (text[0] < '0' || text[0] > '9') {
        return false;
    }
    errno = 0;
    value = strtoul(text, &after, 10);
    *end = after;
    *out = (uint32_t)value;
    return errno == 0 && value < UINT32_MAX;
}

bool vsock_address_parse(const char *text, struct vsock_address *address)
{
    uint32_t first;
    const char *end;

    if (!parse_number(text, &end, &first)) {
        return false;
    }
    *address = (struct vsock_address){.cid = VMADDR_CID_ANY, .port = first};
    if (*end == ':') {
        address->cid = first;
        if (!parse_number(end + 1, &end, &address->port)) {
            return false;
        }
    }
    return *end == '\0';
}

static bool listen_vsock_address_of(int fd, int (*ask)(int, struct sockaddr *, socklen_t *),
                                    struct vsock_address *address)
{
    union {
        struct sockaddr any;
        struct sockaddr_vm vm;
        struct sockaddr_storage storage;
    } found;
    socklen_t length = sizeof(found);

    if (ask(fd, &found.any, &length) < 0 || found.any.sa_family != AF_VSOCK) {
        return false;
    }
    *address = (struct vsock_address){.cid = found.vm.svm_cid, .port = found.vm.svm_port};
    return true;
}

bool vsock_address_own(int fd, struct vsock_address *address)
{
    return listen_vsock_address_of(fd, getsockname, address);
}

bool vsock_address_peer(int fd, struct vsock_address *address)
{
    return listen_vsock_address_of(fd, getpeername, address);
}

uint32_t vsock_local_cid(void)
{
    int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
    unsigned cid = VMADDR_CID_ANY;

    if (fd >= 0) {
        if (ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0) {
            cid = VMADDR_CID_ANY;
        }
        close(fd);
    }
    return cid != VMADDR_CID_ANY ? cid : VMADDR_CID_LOCAL;
}

// ---- Listening ----------------------------------------------------------------------------------

int listen_vsock_name(struct listener *listener, struct error *err)
{
    struct vsock_address own;

    if (!vsock_address_own(listener->fd, &own)) {
        return error_set(err, errno, "descriptor %d: %s", listener->fd, strerror(errno));
    }
    if (own.cid == VMADDR_CID_ANY) {
        own.cid = vsock_local_cid();
    }
    listener->family = LISTENER_VSOCK;
    if (asprintf(&listener->authority, "%u:%u", own.cid, own.port) < 0) {
        listener->authority = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

// Returns a listening socket or a negative errno.
static int listen_vsock_open_address(const struct vsock_address *address)
{
    const struct sockaddr_vm wanted = {
        .svm_family = AF_VSOCK,
        .svm_cid = address->cid,
        .svm_port = address->port != 0 ? address->port : VMADDR_PORT_ANY,
    };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int result;

    if (fd < 0) {
        return -errno;
    }
    if (bind(fd, (const struct sockaddr *)&wanted, sizeof(wanted)) < 0 ||
        listen(fd, SOMAXCONN) < 0) {
        result = -errno;
        close(fd);
        return result;
    }
    return fd;
}

static int open_failed(const struct vsock_address *address, int result, struct error *err)
{
    switch (-result) {
    case EAFNOSUPPORT:
        return error_set(
            err, -result,
            "--vsock %u: this kernel has no vsock; load a module for it: vhost_vsock on "
            "a host, vmw_vsock_virtio_transport in a guest, vsock_loopback for itself",
            address->port);
    case EADDRNOTAVAIL:
        return error_set(err, -result,
                         "--vsock %u:%u: %u is no number of this machine; leave it out for any",
                         address->cid, address->port, address->cid);
    case EADDRINUSE:
        return error_set(err, -result,
                         "--vsock %u: in use by another server; stop that or choose another port",
                         address->port);
    case EACCES:
        return error_set(err, -result,
                         "--vsock %u: ports below 1024 need root; choose another port",
                         address->port);
    default:
        return error_set(err, -result, "--vsock %u: %s", address->port, strerror(-result));
    }
}

int listen_vsock(struct listeners *listeners, const struct vsock_address *address,
                 struct error *err)
{
    size_t before = listeners->count;
    int fd = listen_vsock_open_address(address);
    int result;

    if (fd < 0) {
        return open_failed(address, fd, err);
    }
    result = listen_vsock_name(listeners_add(listeners, fd), err);
    if (result < 0) {
        listeners_truncate(listeners, before);
    }
    return result;
}
