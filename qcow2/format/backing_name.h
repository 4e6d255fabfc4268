// SPDX-License-Identifier: Apache-2.0
// backing_name.h: where the backing file that a header names is.
#ifndef LAZYCOW_QCOW2_FORMAT_BACKING_NAME_H
#define LAZYCOW_QCOW2_FORMAT_BACKING_NAME_H

#include <stdbool.h>

// A name that begins like a URL ("nbd:…", "json:…") stands for no local file.
bool backing_name_is_local(const char *name);

// The path of a local backing file: a relative name is relative to the folder of the image that
// names it. Returns a string to be freed, NULL without memory.
char *backing_name_resolve(const char *image_path, const char *name);

#endif
