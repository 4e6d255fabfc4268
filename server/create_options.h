// SPDX-License-Identifier: Apache-2.0
// create_options.h: the arguments of `lazycow create`, and the options that -o takes.
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
    // The backing file is not opened.
    bool unsafe;
    // lazy_refcounts was given.
    bool lazy_asked;
    // The value as given; NULL: none was.
    const char *preallocation;
    const char *version;
    const char *nocow;
};

// Takes the size of the disk, from an argument or from -o. Returns 0, or 1 after a message.
int create_take_size(struct create_command *c, const char *text);

// Applies one -o list and cuts it into pieces, which the values point into. Returns 0, or 1 after a
// message.
int create_take_options(struct create_command *c, char *list);

#endif
