// SPDX-License-Identifier: Apache-2.0
// lock_holder.h: finds the process that keeps an image locked. Locks of an open file description
// carry no process number (/proc/locks says -1), so the descriptors of all processes are searched.
#ifndef LAZYCOW_SERVER_LOCK_HOLDER_H
#define LAZYCOW_SERVER_LOCK_HOLDER_H

#include <stdbool.h>
#include <sys/types.h>

// Room for the name of a command, which the kernel cuts to 15 bytes.
#define LOCK_HOLDER_COMMAND_MAX 16

struct lock_holder {
    pid_t pid;
    char command[LOCK_HOLDER_COMMAND_MAX];
    bool writes;
};

// Looks for a process that holds locks on the file behind fd: a writer, or any process if
// only_writers is false. Returns false if none is found; processes of other users or in other
// containers cannot be examined. Takes bounded time and never waits for a disk.
bool lock_holder_find(int fd, bool only_writers, struct lock_holder *holder);

#endif
