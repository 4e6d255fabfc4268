// SPDX-License-Identifier: Apache-2.0
// serve_settings.h: the command line of `lazycow serve` as data; functions that parse values; and
// the options that serve_options.c lists but serve_listen.c sets.
#ifndef LAZYCOW_SERVER_SERVE_SETTINGS_H
#define LAZYCOW_SERVER_SERVE_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/export.h"
#include "server/export_argument.h"
#include "server/file_backend.h"
#include "server/keepalive.h"
#include "server/listen_vsock.h"
#include "server/log.h"
#include "server/tls_options.h"

// Addresses of one kind: more than anybody names on a command line, while all kinds together stay
// within LISTEN_MAX.
#define SERVE_LISTEN_MAX 16u

// The addresses to listen on; without any, TCP on localhost. The strings are borrowed.
struct serve_listen {
    const char *sockets[SERVE_LISTEN_MAX]; // paths
    size_t socket_count;
    // Octal, for all paths; NULL: the mode that the umask leaves.
    const char *socket_mode;
    // For all paths, or NULL.
    const char *socket_group;
    const char *binds[SERVE_LISTEN_MAX]; // host names or addresses
    size_t bind_count;
    // Port of all binds.
    uint16_t port;
    bool port_given;
    struct vsock_address vsocks[SERVE_LISTEN_MAX];
    size_t vsock_count;
    // The server does not listen: its client is at standard input and output.
    bool stdio;
};

// Patterns of --tls-allow: more than fit in a command line that people understand.
#define SERVE_TLS_ALLOW_MAX 256u
// Settings of single exports: four for each of the most exports.
#define SERVE_SETS_MAX 4096u
// A connection takes about 200 KiB when idle; with more of them the descriptors of a process run
// out on common systems.
#define SERVE_CONNECTIONS_LIMIT 16384

enum serve_tls { SERVE_TLS_REQUIRE, SERVE_TLS_ON, SERVE_TLS_OFF };

// One rule of --tls-allow.
struct serve_tls_allow {
    // Name of an export; NULL: the text may begin with one.
    const char *name;
    const char *text;
};

struct serve_options {
    struct export_options exports;
    struct serve_listen listen;
    struct keepalive keepalive;
    bool skip_broken; // leaves out images that cannot be opened
    enum backend_kind aio;
    unsigned connections_max;
    uint64_t poll_max_ns;
    uint64_t mmap_bytes;
    bool exit_with_last_client;
    // Without certificates and psk there is no TLS.
    struct tls_options tls;
    enum serve_tls tls_mode;
    bool tls_given; // --tls was given
    struct serve_tls_allow tls_allow[SERVE_TLS_ALLOW_MAX];
    size_t tls_allow_count;
    const char *user;     // or NULL
    const char *group;    // or NULL
    const char *pid_file; // or NULL
    enum log_level log_level;
    bool log_timestamps;
    const char *sets[SERVE_SETS_MAX]; // NAME:KEY=VALUE
    size_t set_count;
    // In the order of the command line; images beyond the room are only counted.
    struct export_argument images[EXPORTS_MAX];
    size_t image_count;
};

// Finds a value in a list of names, which ends with NULL. Returns its index, or -1.
static inline int choice(const char *value, const char *const names[])
{
    for (int i = 0; names[i] != NULL; i++) {
        if (strcmp(value, names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

// Parses a decimal number from least to most.
static inline bool number(const char *value, unsigned long least, unsigned long most,
                          unsigned long *out)
{
    char *end;

    if (value[0] < '0' || value[0] > '9') {
        return false;
    }
    *out = strtoul(value, &end, 10);
    return *end == '\0' && *out >= least && *out <= most;
}

// Parses a switch: value is NULL for an option, "on" or "off" in --set.
static inline bool flag(const char *value, bool *out)
{
    *out = value == NULL || strcmp(value, "on") == 0;
    return *out || strcmp(value, "off") == 0;
}

// Each function sets one option, and returns false for a value that is not allowed
// (serve_listen.c).
bool serve_set_socket(struct serve_options *options, const char *value);
bool serve_set_socket_mode(struct serve_options *options, const char *value);
bool serve_set_socket_group(struct serve_options *options, const char *value);
bool serve_set_bind(struct serve_options *options, const char *value);
bool serve_set_port(struct serve_options *options, const char *value);
bool serve_set_vsock(struct serve_options *options, const char *value);
bool serve_set_stdio(struct serve_options *options, const char *value);
bool serve_set_tcp_keepalive(struct serve_options *options, const char *value);

#endif
