// SPDX-License-Identifier: Apache-2.0
// backing_name.h: where the backing file that a header names is.
#ifndef LAZYCOW_QCOW2_FORMAT_BACKING_NAME_H
#define LAZYCOW_QCOW2_FORMAT_BACKING_NAME_H

#include <stdbool.h>

// The path in a name: what stands behind "file:" or "host_device:" where it begins so. Points into
// the name.
const char *backing_name_path(const char *name);

// A name that begins with another protocol ("nbd:…", "json:…") stands for no local file.
bool backing_name_is_local(const char *name);

// The path of a local backing file: a relative name is relative to the folder of the image that
// names it, also behind "file:". Returns a string to be freed, NULL without memory.
char *backing_name_resolve(const char *image_name, const char *name);

#endif
