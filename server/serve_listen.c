// SPDX-License-Identifier: Apache-2.0
#include "server/serve_listen.h"

#include <errno.h>
#include <string.h>

#include "server/privileges.h"
#include "server/listen_unix.h"
#include "server/listen_vsock.h"
#include "server/serve_settings.h"
#include "server/start_watch.h"

// ---- The options --------------------------------------------------------------------------------

// Appends to a list of addresses of one kind.
static bool serve_listen_add(const char *list[SERVE_LISTEN_MAX], size_t *count, const char *value)
{
    if (*count == SERVE_LISTEN_MAX || value[0] == '\0') {
        return false;
    }
    list[(*count)++] = value;
    return true;
}

bool serve_set_socket(struct serve_options *o, const char *value)
{
    return serve_listen_add(o->listen.sockets, &o->listen.socket_count, value);
}

bool serve_set_bind(struct serve_options *o, const char *value)
{
    return serve_listen_add(o->listen.binds, &o->listen.bind_count, value);
}

bool serve_set_port(struct serve_options *o, const char *value)
{
    unsigned long port;

    o->listen.port_given = true;
    if (!number(value, 0, UINT16_MAX, &port)) {
        return false;
    }
    o->listen.port = (uint16_t)port;
    return true;
}

bool serve_set_vsock(struct serve_options *o, const char *value)
{
    struct serve_listen *listen = &o->listen;

    return listen->vsock_count < SERVE_LISTEN_MAX &&
           vsock_address_parse(value, &listen->vsocks[listen->vsock_count++]);
}

bool serve_set_stdio(struct serve_options *o, const char *value)
{
    (void)value;
    o->listen.stdio = true;
    return true;
}

bool serve_set_socket_mode(struct serve_options *o, const char *value)
{
    char *end;

    // Checked for digits, because strtoul() accepts a sign and spaces, too.
    o->listen.socket_mode = value;
    return value[0] >= '0' && value[0] <= '7' && strtoul(value, &end, 8) <= 0777 && *end == '\0';
}

bool serve_set_socket_group(struct serve_options *o, const char *value)
{
    o->listen.socket_group = value;
    return value[0] != '\0';
}

bool serve_set_tcp_keepalive(struct serve_options *o, const char *value)
{
    static const char *const names[] = {"off", "on", NULL};
    int mode = choice(value, names);
    unsigned long seconds = 0;

    if (mode < 0 && !number(value, 1, KEEPALIVE_SECONDS_MAX, &seconds)) {
        return false;
    }
    o->keepalive = (struct keepalive){.off = mode == 0, .seconds = (unsigned)seconds};
    return true;
}

// ---- The sockets --------------------------------------------------------------------------------

bool serve_listen_given(const struct serve_listen *listen)
{
    return listen->socket_count > 0 || listen->bind_count > 0 || listen->port_given ||
           listen->vsock_count > 0;
}

static int open_unix(const struct serve_listen *listen, struct start_watch *watch,
                     struct listeners *listeners, struct error *err)
{
    struct listen_unix_access access = {.mode = LISTEN_UNIX_AS_IS, .group = LISTEN_UNIX_AS_IS};
    int result = 0;

    if (listen->socket_mode != NULL) {
        access.mode = (unsigned)strtoul(listen->socket_mode, NULL, 8);
    }
    if (listen->socket_group != NULL) {
        result = privileges_group("--socket-group", listen->socket_group, &access.group, err);
    }
    start_watch_end(watch);
    for (size_t i = 0; result == 0 && i < listen->socket_count; i++) {
        result = listen_unix(listeners, listen->sockets[i], &access, err);
    }
    return result;
}

static int open_tcp(const struct serve_listen *listen, struct listeners *listeners,
                    struct error *err)
{
    int result = 0;

    if (listen->bind_count == 0 && (listen->port_given || !serve_listen_given(listen))) {
        return listen_tcp(listeners, NULL, listen->port, true, err);
    }
    for (size_t i = 0; result == 0 && i < listen->bind_count; i++) {
        result =
            listen_tcp(listeners, listen->binds[i], listen->port, listen->bind_count == 1, err);
    }
    return result;
}

// Moves the sockets of paths before those of addresses, into the order in which they are announced.
// addresses: the number of sockets of addresses.
static void paths_first(struct listeners *listeners, size_t addresses)
{
    struct listener moved[LISTEN_MAX];
    size_t paths = listeners->count - addresses;

    memcpy(moved, listeners->list, addresses * sizeof(moved[0]));
    memmove(listeners->list, listeners->list + addresses, paths * sizeof(moved[0]));
    memcpy(listeners->list + paths, moved, addresses * sizeof(moved[0]));
}

int serve_listen_open(const struct serve_listen *listen, struct start_watch *watch,
                      struct listeners *listeners, struct error *err)
{
    size_t addresses;
    int result;

    listeners->count = 0;
    // Addresses first: finding them may take long, and as yet there is no path to remove.
    result = open_tcp(listen, listeners, err);
    for (size_t i = 0; result == 0 && i < listen->vsock_count; i++) {
        result = listen_vsock(listeners, &listen->vsocks[i], err);
    }
    addresses = listeners->count;
    if (result == 0) {
        result = open_unix(listen, watch, listeners, err);
    }
    if (result < 0) {
        listeners_close(listeners);
        return result;
    }
    paths_first(listeners, addresses);
    return 0;
}
