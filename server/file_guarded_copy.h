// SPDX-License-Identifier: Apache-2.0
// file_guarded_copy.h: copies out of mapped files. A mapped file may have been truncated or be
// unreadable, which the kernel reports by SIGBUS.
#ifndef LAZYCOW_SERVER_FILE_GUARDED_COPY_H
#define LAZYCOW_SERVER_FILE_GUARDED_COPY_H

#include <stdbool.h>
#include <stddef.h>

// Called before the first copy, by the thread that makes copies: unblocks SIGBUS, which still ends
// the process outside of a copy.
void file_guarded_copy_init(void);

// As memcpy. Returns false if some of the bytes cannot be read.
bool file_guarded_copy(void *to, const void *from, size_t bytes);

#endif
