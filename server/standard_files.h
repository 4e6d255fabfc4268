// SPDX-License-Identifier: Apache-2.0
// standard_files.h: descriptors 0 to 2 are open before anything else is. The first image would else
// become standard error, and the next message would overwrite its header.
#ifndef LAZYCOW_SERVER_STANDARD_FILES_H
#define LAZYCOW_SERVER_STANDARD_FILES_H

// Opens /dev/null on each of the descriptors 0 to 2 that is closed. To be called first of all.
// Returns 0 or a negative errno: then nothing may be opened.
int standard_files_open(void);

#endif
