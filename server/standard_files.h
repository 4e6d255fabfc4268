// SPDX-License-Identifier: Apache-2.0
// standard_files.h: opens descriptors 0 to 2 before any other file. Otherwise the first image could
// become standard error, and the next message would overwrite its header.
#ifndef LAZYCOW_SERVER_STANDARD_FILES_H
#define LAZYCOW_SERVER_STANDARD_FILES_H

// Opens /dev/null on each of the descriptors 0 to 2 that is closed. Called before anything else.
// Returns 0 or a negative errno: then nothing may be opened.
int standard_files_open(void);

#endif
