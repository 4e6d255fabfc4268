// SPDX-License-Identifier: Apache-2.0
// info.h: what `lazycow info` tells about an image, as `qemu-img info` does.
#ifndef LAZYCOW_SERVER_INFO_H
#define LAZYCOW_SERVER_INFO_H

#include <jansson.h>

#include "qcow2/base/error.h"
#include "qcow2/image.h"
#include "server/cmd.h"

// Looks at one image. format UNKNOWN: qcow2 if it begins like that, else raw. Returns a new JSON
// object with the names of qemu-img, or NULL with a message.
json_t *info_read(const char *name, enum image_format format, enum cmd_access access,
                  enum file_locking locking, struct error *err);

// Prints such an object for people.
void info_print(const json_t *info);

#endif
