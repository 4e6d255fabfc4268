// SPDX-License-Identifier: Apache-2.0
// file_seek.h: where a file has data and holes, as SEEK_DATA and SEEK_HOLE of lseek(2) tell it.
#ifndef LAZYCOW_SERVER_FILE_SEEK_H
#define LAZYCOW_SERVER_FILE_SEEK_H

struct file_io;

// Carries out a FILE_EXTENTS, blocking. The position of the descriptor moves; nobody uses it.
// Returns 0, or a negative errno: -EOPNOTSUPP where the file system cannot tell.
int file_seek_extents(int fd, struct file_io *io);

#endif
