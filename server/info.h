// SPDX-License-Identifier: Apache-2.0
// info.h: collects and prints the facts of `lazycow info`, those of `qemu-img info`.
#ifndef LAZYCOW_SERVER_INFO_H
#define LAZYCOW_SERVER_INFO_H

#include <jansson.h>

#include "qcow2/base/error.h"
#include "qcow2/image.h"
#include "server/cmd.h"

// Examines one image. format UNKNOWN: qcow2 if the file begins like it, else raw. Returns a new
// JSON object with qemu-img's names, or NULL with a message.
json_t *info_read(const char *name, enum image_format format, enum cmd_access access,
                  enum file_locking locking, struct error *err);

// Prints an object of info_read() for people.
void info_print(const json_t *info);

#endif
