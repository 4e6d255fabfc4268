// SPDX-License-Identifier: Apache-2.0
// file_locking.h: takes an image's locks when it is opened, as --locking demands, and explains a
// refusal to the user.
#ifndef LAZYCOW_SERVER_FILE_LOCKING_H
#define LAZYCOW_SERVER_FILE_LOCKING_H

#include <stdbool.h>

#include "qcow2/base/error.h"
#include "server/file_lock.h"

// The values of `locking` of QEMU's file driver.
enum file_locking {
    FILE_LOCKING_OFF,
    FILE_LOCKING_AUTO, // locked if the file system has locks, else used with a warning
    FILE_LOCKING_ON,   // refused if the file system has no locks
};

// Texts for help and messages.
#define FILE_LOCKING_VALUES "auto, on or off"

bool file_locking_parse(const char *text, enum file_locking *locking);

// Receives a one-line warning for the user although the file is opened.
typedef void file_locking_warn(void *context, const char *line);

// Locks the open file description behind fd, as file_lock(). Waits for at most two seconds for a
// process that is ending, and not at all for one that runs. Returns 0, or a negative errno with a
// message: -EAGAIN if another process uses the image, -EBUSY if this one does.
int file_locking_take(int fd, enum file_lock_role role, enum file_locking locking, const char *name,
                      file_locking_warn *warn, void *context, struct error *err);

#endif
