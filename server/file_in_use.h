// SPDX-License-Identifier: Apache-2.0
// file_in_use.h: whether this process itself uses a file in a way that does not go together with
// opening it as an image. Locks tell of other processes, and only where there are locks.
#ifndef LAZYCOW_SERVER_FILE_IN_USE_H
#define LAZYCOW_SERVER_FILE_IN_USE_H

#include <stdbool.h>

#include "qcow2/base/error.h"

struct backend;

// Refuses the file behind fd when it is open as an image already and one of the two is for writing,
// under whatever name, or when standard output or standard error goes there. Returns 0, or -EBUSY
// with a message.
int file_in_use_check(const struct backend *backend, int fd, bool read_only, const char *path,
                      struct error *err);

#endif
