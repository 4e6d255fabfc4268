// SPDX-License-Identifier: Apache-2.0
// pid_file.h: the file that holds the server's process number. It is locked as QEMU locks its own,
// so that two servers, or a server and a qemu-nbd, never share one.
#ifndef LAZYCOW_SERVER_PID_FILE_H
#define LAZYCOW_SERVER_PID_FILE_H

#include <sys/types.h>

#include "qcow2/base/error.h"

struct pid_file {
    int fd;     // locked while open; -1: there is no pid file
    char *path; // absolute, without symbolic links
};

// Makes the file, or takes it over if it is empty or was left by a dead process, and writes our
// number. Refuses a file that another process holds (-EBUSY) and a file that is no pid file, and
// leaves it unchanged. Never waits. Returns 0, or a negative errno with a message; pid_file->fd is
// -1 then.
int pid_file_take(struct pid_file *pid_file, const char *path, struct error *err);

// Removes the file if the path still leads to it. Empties it instead if removing is forbidden
// because privileges were dropped.
void pid_file_drop(struct pid_file *pid_file);

#endif
