// SPDX-License-Identifier: Apache-2.0
// serve_elsewhere.c: options of qemu-nbd that lazycow does not have, with the ways to the same
// result.
#include <string.h>

#include "server/serve_options.h"

static const struct elsewhere {
    const char *name;
    char letter; // 0: none
    const char *advice;
} table[] = {
    {"connect", 'c', "serve, then 'nbd-client -unix SOCKET /dev/nbd0 -N NAME'"},
    {"disconnect", 'd', "'nbd-client -d /dev/nbd0'"},
    {"list", 'L', "'nbdinfo --list URI'"},
    {"load-snapshot", 'l', "'qemu-img convert -l' makes an image of a snapshot"},
    {"snapshot", 's', "'lazycow create -b IMAGE -F qcow2 OVERLAY', and serve the overlay"},
    {"bitmap", 'B', "bitmaps are not served"},
    {"allocation-depth", 'A', "leave it out: the allocation depth is always offered"},
    {"offset", 'o', "name a whole device or partition"},
    {"image-opts", 0, "name the file and use the options of 'lazycow serve'"},
    {"object", 0, "--tls-certificates=DIR or --tls-psk=FILE"},
    {"tls-creds", 0, "--tls-certificates=DIR or --tls-psk=FILE"},
    {"tls-authz", 0, "--tls-allow=[NAME:]PATTERN"},
    {"tls-hostname", 0, "it is for a client of --list: 'nbdinfo --list nbds://HOST'"},
    {"fork", 0, "run it under systemd, or with '&' and wait for the line 'listening on'"},
    {"selinux-label", 0, "set the label in the systemd unit"},
};

const char *serve_elsewhere(const char *word, int letter)
{
    bool is_long = strncmp(word, "--", 2) == 0;
    size_t length = is_long ? strcspn(word + 2, "=") : 0;

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (is_long
                ? strlen(table[i].name) == length && strncmp(word + 2, table[i].name, length) == 0
                : table[i].letter != 0 && table[i].letter == letter) {
            return table[i].advice;
        }
    }
    return NULL;
}
