// SPDX-License-Identifier: Apache-2.0
// serve_settings.h: what the files that hold serve's options share: reading values, and the options
// that serve_options.c lists but that are set elsewhere.
#ifndef LAZYCOW_SERVER_SERVE_SETTINGS_H
#define LAZYCOW_SERVER_SERVE_SETTINGS_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "server/serve_options.h"

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

// A decimal number from least to most.
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

// A setting that is on by being given: value is NULL as an option, "on" or "off" in --set.
static inline bool flag(const char *value, bool *out)
{
    *out = value == NULL || strcmp(value, "on") == 0;
    return *out || strcmp(value, "off") == 0;
}

// Each sets one option; false for a value that is not among those allowed (serve_listen.c).
bool serve_set_socket(struct serve_options *options, const char *value);
bool serve_set_socket_mode(struct serve_options *options, const char *value);
bool serve_set_socket_group(struct serve_options *options, const char *value);
bool serve_set_bind(struct serve_options *options, const char *value);
bool serve_set_port(struct serve_options *options, const char *value);
bool serve_set_vsock(struct serve_options *options, const char *value);
bool serve_set_stdio(struct serve_options *options, const char *value);
bool serve_set_tcp_keepalive(struct serve_options *options, const char *value);

#endif
