// SPDX-License-Identifier: Apache-2.0
// pid_file.h: the file that says which process serves. It is locked as QEMU locks its own, so that
// two servers (or a server and a qemu-nbd) never share one.
#ifndef LAZYCOW_SERVER_PID_FILE_H
#define LAZYCOW_SERVER_PID_FILE_H

#include <sys/types.h>

#include "qcow2/base/error.h"

struct pid_file {
    int fd;     // locked while it is open; -1: none
    char *path; // absolute, without symbolic links
};

// Makes the file, or takes it over if it is empty or a dead process left it, and writes our number.
// Refuses what another process holds (-EBUSY) and what is no pid file, which stays as it is. Never
// waits. Returns 0, or a negative errno with a message; pid_file->fd is -1 then.
int pid_file_take(struct pid_file *pid_file, const char *path, struct error *err);

// Removes the file if the path still leads to it. Where that is not allowed any more, because
// privileges were dropped, it is emptied.
void pid_file_drop(struct pid_file *pid_file);

#endif
