// SPDX-License-Identifier: Apache-2.0
// backing_name.h: finds the backing file that a header names.
#ifndef LAZYCOW_QCOW2_FORMAT_BACKING_NAME_H
#define LAZYCOW_QCOW2_FORMAT_BACKING_NAME_H

#include <stdbool.h>

// Returns the path in a name: the part behind "file:" or "host_device:" if the name begins so, else
// the whole name. Points into the name.
const char *backing_name_path(const char *name);

// Returns false for a name that begins with another protocol ("nbd:…", "json:…") and so stands for
// no local file.
bool backing_name_is_local(const char *name);

// Returns the path of a local backing file. A relative name, also behind "file:", is relative to
// the folder of the image that names it. The caller frees the string; NULL without memory.
char *backing_name_resolve(const char *image_name, const char *name);

#endif
