// SPDX-License-Identifier: Apache-2.0
// foreign.h: recognizes files that hold a disk in a format other than qcow2, so that such a file is
// not taken for the disk itself.
#ifndef LAZYCOW_QCOW2_FORMAT_FOREIGN_H
#define LAZYCOW_QCOW2_FORMAT_FOREIGN_H

#include <stddef.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"

struct foreign_format {
    const char *name; // for people
    // Name of the format for qemu-img -f; NULL: none, the file has to be unpacked.
    const char *driver;
};

// Returns the format that the file looks like, or NULL. A file that cannot be read looks like none.
// Blocking.
const struct foreign_format *foreign_format_of(struct file *file);

// Sets the message for a file that looks like a foreign format: its format and the user's remedy.
// Returns -ENOTSUP.
int foreign_format_refuse(const struct foreign_format *format, const char *name, struct error *err);

#endif
