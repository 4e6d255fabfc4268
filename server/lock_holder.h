// SPDX-License-Identifier: Apache-2.0
// lock_holder.h: which process keeps an image locked. Locks of an open file description carry no
// process number (/proc/locks says -1), so the descriptors of all processes are looked through.
#ifndef LAZYCOW_SERVER_LOCK_HOLDER_H
#define LAZYCOW_SERVER_LOCK_HOLDER_H

#include <stdbool.h>
#include <sys/types.h>

// The kernel cuts the name of a command to 15 bytes.
#define LOCK_HOLDER_COMMAND_MAX 16

struct lock_holder {
    pid_t pid;
    char command[LOCK_HOLDER_COMMAND_MAX];
    bool writes;
};

// Looks for a process that holds locks on the file behind fd: one that writes, or just any where
// only_writers is false. Returns false where none is found; processes of other users or of other
// containers cannot be looked into. Bounded effort, never waits for a disk.
bool lock_holder_find(int fd, bool only_writers, struct lock_holder *holder);

#endif
