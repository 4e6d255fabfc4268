// SPDX-License-Identifier: Apache-2.0
// create_options.h: what `lazycow create` was asked for, and the options that -o takes.
#ifndef LAZYCOW_SERVER_CREATE_OPTIONS_H
#define LAZYCOW_SERVER_CREATE_OPTIONS_H

#include <stdbool.h>

#include "qcow2/offline/create.h"
#include "server/file_locking.h"

struct create_command {
    struct create_options options;
    const char *path;
    bool have_size;
    bool quiet;
    enum file_locking locking;
    bool unsafe;               // the backing file is not looked at
    bool lazy_asked;           // lazy_refcounts was given
    const char *preallocation; // as given, NULL if not
    const char *version;
    const char *nocow;
};

// The size of the disk, as an argument or with -o. Returns 0, or 1 after a message.
int create_take_size(struct create_command *c, const char *text);

// Applies one -o list, which is cut into pieces; values keep pointing into it. Returns 0, or 1 after a
// message.
int create_take_options(struct create_command *c, char *list);

#endif
