// SPDX-License-Identifier: Apache-2.0
// file_lock.h: locks that keep two processes from writing one image, compatible with QEMU's tools.
//
// QEMU describes every user of an image by permissions: those it uses, and those it allows no other
// user to have. Both are byte-range read locks of the open file description (fcntl(2), "Open file
// description locks"), one byte a permission. Read locks never collide by themselves, so each user
// sets its own and then checks that nobody else holds the opposite ones.
#ifndef LAZYCOW_SERVER_FILE_LOCK_H
#define LAZYCOW_SERVER_FILE_LOCK_H

#include "qcow2/base/error.h"

// First and last of the bytes with image locks, and the byte of a user that writes.
#define FILE_LOCK_BYTE_FIRST 100
#define FILE_LOCK_BYTE_WRITES 101
#define FILE_LOCK_BYTE_LAST 203

enum file_lock_role {
    FILE_LOCK_READER, // any number of readers, no writer
    FILE_LOCK_WRITER, // alone
};

// Locks the open file description behind fd; closing it unlocks. Never waits. Returns 0, or a
// negative errno with a message that names the file: -EAGAIN if another process (or another open in
// this one) uses the image in a way that does not go together with role.
int file_lock(int fd, enum file_lock_role role, const char *name, struct error *err);

#endif
