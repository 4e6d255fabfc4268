// SPDX-License-Identifier: Apache-2.0
// file_in_use.h: whether this process itself uses a file in a way that does not go together with
// opening it as an image. Locks tell of other processes, and only where there are locks.
#ifndef LAZYCOW_SERVER_FILE_IN_USE_H
#define LAZYCOW_SERVER_FILE_IN_USE_H

#include <stdbool.h>
#include <stddef.h>

#include "qcow2/base/error.h"
#include "server/storage.h"

// The images of one server and their backing files. Zero it.
struct files_in_use {
    struct file_in_use {
        struct storage storage;
        bool writable;
    } * list;
    size_t count;
    size_t room;
};

// Each returns 0, or a negative errno with a message: -EBUSY where two uses do not go together.

// Adds a file that was just opened. Refuses one that is there already, under whatever name, when one
// of the two is for writing.
int files_in_use_add(struct files_in_use *files, const char *name, bool read_only,
                     struct error *err);

// Leaves the first count files; the others were closed.
void files_in_use_keep(struct files_in_use *files, size_t count);

void files_in_use_free(struct files_in_use *files);

// Refuses a file that standard output or standard error goes to, and has nothing printed there from
// then on. To be called before anything is printed.
int file_in_use_by_output(const char *name, struct error *err);

#endif
