// SPDX-License-Identifier: Apache-2.0
// file_seek.h: finds data and holes of a file with SEEK_DATA and SEEK_HOLE of lseek(2).
#ifndef LAZYCOW_SERVER_FILE_SEEK_H
#define LAZYCOW_SERVER_FILE_SEEK_H

struct file_io;

// Carries out a FILE_EXTENTS, blocking. Moves the position of the descriptor, which nothing else
// uses. Returns 0, or a negative errno: -EOPNOTSUPP if the file system cannot tell.
int file_seek_extents(int fd, struct file_io *io);

#endif
