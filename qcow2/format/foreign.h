// SPDX-License-Identifier: Apache-2.0
// foreign.h: recognizes files that hold a disk in a format other than qcow2, so that nobody takes the
// container for the disk.
#ifndef LAZYCOW_QCOW2_FORMAT_FOREIGN_H
#define LAZYCOW_QCOW2_FORMAT_FOREIGN_H

#include <stddef.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"

struct foreign_format {
    const char *name;   // for people
    const char *driver; // what qemu-img -f calls it; NULL: none, the file is to be unpacked
};

// The format that the file looks like, or NULL; a file that cannot be read looks like none. Blocking.
const struct foreign_format *foreign_format_of(struct file *file);

// Sets the message for a file that looks like a foreign format: what it is and what can be done.
// Returns -ENOTSUP.
int foreign_format_refuse(const struct foreign_format *format, const char *name, struct error *err);

#endif
