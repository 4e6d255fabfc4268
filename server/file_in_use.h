// SPDX-License-Identifier: Apache-2.0
// file_in_use.h: finds uses of a file in this process itself that do not go together with opening
// it as an image. Locks tell only of other processes, and only on file systems that have locks.
#ifndef LAZYCOW_SERVER_FILE_IN_USE_H
#define LAZYCOW_SERVER_FILE_IN_USE_H

#include <stdbool.h>
#include <stddef.h>

#include "qcow2/base/error.h"
#include "server/storage.h"

// The images of one server and their backing files. Must be zeroed before use.
struct files_in_use {
    struct file_in_use {
        struct storage storage;
        bool writable;
    } * list;
    size_t count;
    size_t room;
};

// Each function returns 0, or a negative errno with a message: -EBUSY if two uses do not go
// together.

// Adds a file that was just opened. Refuses a file that the list has already, under any name, if
// one of the two uses is for writing.
int files_in_use_add(struct files_in_use *files, const char *name, bool read_only,
                     struct error *err);

// Keeps the first count files of the list; the others were closed.
void files_in_use_keep(struct files_in_use *files, size_t count);

void files_in_use_free(struct files_in_use *files);

// Refuses a file that standard output or standard error is written to, and redirects that output.
// Called before anything is printed.
int file_in_use_by_output(const char *name, struct error *err);

#endif
