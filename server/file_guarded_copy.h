// SPDX-License-Identifier: Apache-2.0
// file_guarded_copy.h: copies out of mapped files, which may be cut or unreadable: the kernel says so by
// SIGBUS.
#ifndef LAZYCOW_SERVER_FILE_GUARDED_COPY_H
#define LAZYCOW_SERVER_FILE_GUARDED_COPY_H

#include <stdbool.h>
#include <stddef.h>

// To be called before the first copy, by the thread that makes them: unblocks SIGBUS, which ends the
// process, as ever, where no copy is made.
void file_guarded_copy_init(void);

// As memcpy. Returns false when not all of the bytes can be had.
bool file_guarded_copy(void *to, const void *from, size_t bytes);

#endif
