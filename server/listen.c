// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // asprintf
#include "server/listen.h"

#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/listen_unix.h"
#include "server/listen_vsock.h"

// Connections that may wait to be accepted: as many as the kernel's setting allows.
#define LISTEN_BACKLOG SOMAXCONN
// Tries to find a free port for all addresses of a host: with port 0 the kernel picks one for the
// first address, which may be taken on the second.
#define LISTEN_PORT_TRIES 16

// ---- Socket activation --------------------------------------------------------------------------

unsigned listen_activated(void)
{
    const char *pid = getenv("LISTEN_PID");
    const char *fds = getenv("LISTEN_FDS");
    unsigned count = 0;

    if (pid != NULL && fds != NULL && strtoul(pid, NULL, 10) == (unsigned long)getpid()) {
        unsigned long n = strtoul(fds, NULL, 10);

        count = n > LISTEN_MAX ? LISTEN_MAX + 1 : (unsigned)n;
    }
    // The variables are meant for this process and not for its children.
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return count;
}

union socket_address {
    struct sockaddr any;
    struct sockaddr_storage storage;
};

static uint16_t address_port(const struct sockaddr *address)
{
    return ntohs(address->sa_family == AF_INET6
                     ? ((const struct sockaddr_in6 *)(const void *)address)->sin6_port
                     : ((const struct sockaddr_in *)(const void *)address)->sin_port);
}

static bool is_any_address(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET6) {
        return IN6_IS_ADDR_UNSPECIFIED(
            &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
    }
    return address->sa_family == AF_INET &&
           ((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr ==
               htonl(INADDR_ANY);
}

// Names the listener after host, with the brackets of an IPv6 address, and port. Clients on this
// host reach a socket of all addresses as localhost.
static int set_authority(struct listener *listener, const char *host, unsigned port,
                         struct error *err)
{
    union socket_address address;
    socklen_t length = sizeof(address);

    if (getsockname(listener->fd, &address.any, &length) == 0 && is_any_address(&address.any)) {
        host = "localhost";
    }
    if (asprintf(&listener->authority, strchr(host, ':') != NULL ? "[%s]:%u" : "%s:%u", host,
                 port) < 0) {
        listener->authority = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

static int name_from_socket(struct listener *listener, struct error *err)
{
    union socket_address address;
    socklen_t length = sizeof(address);
    char host[NI_MAXHOST];

    if (getsockname(listener->fd, &address.any, &length) < 0) {
        return error_set(err, errno, "descriptor %d: %s", listener->fd, strerror(errno));
    }
    if (address.any.sa_family == AF_UNIX) {
        return listen_unix_name(listener, err);
    }
    if (address.any.sa_family == AF_VSOCK) {
        return listen_vsock_name(listener, err);
    }
    if (getnameinfo(&address.any, length, host, sizeof(host), NULL, 0, NI_NUMERICHOST) != 0) {
        return 0; // a socket of another family can be served, but no URI names it
    }
    listener->family = LISTENER_TCP;
    return set_authority(listener, host, address_port(&address.any), err);
}

int listen_take(struct listeners *listeners, unsigned count, struct error *err)
{
    listeners->count = 0;
    if (count > LISTEN_MAX) {
        return error_set(err, EINVAL, "LISTEN_FDS hands over more than %d sockets", LISTEN_MAX);
    }
    for (unsigned i = 0; i < count; i++) {
        int fd = LISTEN_FDS_START + (int)i;
        int listening = 0;
        int type = 0;
        socklen_t length = sizeof(int);
        int result;

        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type != SOCK_STREAM ||
            getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0 || !listening) {
            listeners_close(listeners);
            return error_set(err, EINVAL,
                             "descriptor %d of LISTEN_FDS is no listening stream socket; the "
                             "socket unit needs ListenStream= and Accept=no, or the service "
                             "StandardInput=socket and --stdio",
                             fd);
        }
        result = listen_prepare(fd);
        if (result < 0) {
            listeners_close(listeners);
            return error_set(err, -result, "descriptor %d: %s", fd, strerror(-result));
        }
        result = name_from_socket(listeners_add(listeners, fd), err);
        if (result < 0) {
            listeners_close(listeners);
            return result;
        }
    }
    return 0;
}

// ---- TCP ----------------------------------------------------------------------------------------

static void address_set_port(struct sockaddr *address, uint16_t port)
{
    if (address->sa_family == AF_INET6) {
        ((struct sockaddr_in6 *)(void *)address)->sin6_port = htons(port);
    } else {
        ((struct sockaddr_in *)(void *)address)->sin_port = htons(port);
    }
}

static uint16_t bound_port(int fd)
{
    union socket_address address;
    socklen_t length = sizeof(address);

    return getsockname(fd, &address.any, &length) == 0 ? address_port(&address.any) : 0;
}

// Returns a listening socket or a negative errno.
static int listen_open_address(const struct addrinfo *info, bool alone)
{
    const int on = 1;
    const int v6only = !alone; // alone, `::` takes IPv4, too
    int fd;
    int result = 0;

    fd = socket(info->ai_family, info->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC,
                info->ai_protocol);
    if (fd < 0) {
        return -errno;
    }
    // Without it a server cannot restart while connections of its predecessor are in TIME_WAIT.
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (info->ai_family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof(v6only));
    }
    if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
        result = -errno;
        close(fd);
        return result;
    }
    return fd;
}

// Opens each address. Addresses of families that this host does not support are left out, unless
// none would remain. Returns 0 or a negative errno.
static int open_addresses(struct listeners *listeners, struct addrinfo *addresses, uint16_t port,
                          bool alone)
{
    size_t before = listeners->count;
    int last = -EADDRNOTAVAIL;

    for (struct addrinfo *info = addresses; info != NULL; info = info->ai_next) {
        struct listener *listener;
        int fd;

        if ((info->ai_family != AF_INET && info->ai_family != AF_INET6) ||
            listeners->count == LISTEN_MAX) {
            continue;
        }
        address_set_port(info->ai_addr, port);
        fd = listen_open_address(info, alone && addresses->ai_next == NULL);
        if (fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL) {
            last = fd;
            continue;
        }
        if (fd < 0) {
            listeners_truncate(listeners, before);
            return fd;
        }
        listener = listeners_add(listeners, fd);
        listener->family = LISTENER_TCP;
        listener->announce = listeners->count == before + 1;
        port = bound_port(fd);
    }
    return listeners->count > before ? 0 : last;
}

// Finds the addresses of a host. "*" stands for all addresses of this host, as in other programs.
// Returns as getaddrinfo().
static int resolve(const char *host, struct addrinfo **addresses)
{
    bool all = strcmp(host, "*") == 0;
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = all ? AI_PASSIVE : 0};

    // Without a name the resolver gives the loopback addresses, even without a hosts file; with
    // AI_PASSIVE it gives the addresses that stand for all.
    return getaddrinfo(all || strcmp(host, "localhost") == 0 ? NULL : host, "0", &hints, addresses);
}

int listen_tcp(struct listeners *listeners, const char *host, uint16_t port, bool alone,
               struct error *err)
{
    size_t before = listeners->count;
    struct addrinfo *addresses;
    char address[NI_MAXHOST];
    int result;

    host = host != NULL ? host : "localhost";
    // An IPv6 address may stand in the brackets that it has in a URI.
    if (sscanf(host, "[%1023[0-9a-fA-F:.]]", address) == 1 && host[strlen(host) - 1] == ']') {
        host = address;
    }
    result = resolve(host, &addresses);
    if (result != 0) {
        return error_set(err, EADDRNOTAVAIL,
                         "--bind '%s': %s; give a name or address of this host, or '*' for all",
                         host, gai_strerror(result));
    }
    for (int i = 0; i < LISTEN_PORT_TRIES; i++) {
        result = open_addresses(listeners, addresses, port, alone);
        if (result != -EADDRINUSE || port != 0) {
            break;
        }
    }
    freeaddrinfo(addresses);
    if (result == -EADDRINUSE) {
        return error_set(err, EADDRINUSE,
                         "'%s' port %u: in use by another server; stop that or choose another "
                         "with --port",
                         host, (unsigned)port);
    }
    if (result < 0) {
        return error_set(err, -result, "'%s' port %u: %s; choose others with --bind and --port",
                         host, (unsigned)port, strerror(-result));
    }
    result =
        set_authority(&listeners->list[before], host, bound_port(listeners->list[before].fd), err);
    if (result < 0) {
        listeners_truncate(listeners, before);
    }
    return result;
}

// ---- URI ----------------------------------------------------------------------------------------

// Appends text, percent-encoded except for the unreserved characters (RFC 3986, section 2.3) and
// those in also.
static char *append_encoded(char *to, const char *text, const char *also)
{
    static const char unreserved[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";

    for (; *text != '\0'; text++) {
        if (strchr(unreserved, *text) != NULL || strchr(also, *text) != NULL) {
            *to++ = *text;
        } else {
            to += sprintf(to, "%%%02X", (unsigned)(unsigned char)*text);
        }
    }
    *to = '\0';
    return to;
}

char *listen_uri(const struct listener *listener, const char *export_name, bool tls)
{
    static const char *const schemes[] = {
        [LISTENER_TCP] = "://", [LISTENER_UNIX] = "+unix:///", [LISTENER_VSOCK] = "+vsock://"};
    const char *where = listener->authority != NULL ? listener->authority : listener->path;
    char *uri;
    char *to;

    if (where == NULL) {
        return NULL;
    }
    uri = malloc(sizeof("nbds+unix:///?socket=") + 3 * (strlen(where) + strlen(export_name)));
    if (uri == NULL) {
        return NULL;
    }
    to = stpcpy(stpcpy(uri, tls ? "nbds" : "nbd"), schemes[listener->family]);
    if (listener->family == LISTENER_UNIX) {
        to = append_encoded(to, export_name, "");
        append_encoded(stpcpy(to, "?socket="), where, "/");
    } else {
        // The brackets of an IPv6 address and the colon before the port are syntax of the URI.
        to = append_encoded(to, where, "[]:");
        *to++ = '/';
        append_encoded(to, export_name, "");
    }
    return uri;
}
