// SPDX-License-Identifier: Apache-2.0
// backing.h: opens the backing file that an image's header names.
#ifndef LAZYCOW_QCOW2_BACKING_H
#define LAZYCOW_QCOW2_BACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/core/host.h"

struct image;

struct backing_member {
    uint64_t device, inode; // 0, 0: not known
    const char *name;       // borrowed
};

// The files of a chain that is being opened, to detect an image that is its own backing image. The
// list is compact because each new file is compared with all: a chain of 10 000 images takes 50
// million comparisons.
struct backing_members {
    struct backing_member *list;
    size_t count;
    size_t room;
};

// Returns 0 or -ENOMEM.
int backing_members_add(struct backing_members *members, const struct backing_member *member);
// Returns true if the file is a member. Names are compared when the file has no identity (struct
// file).
bool backing_members_have(const struct backing_members *members,
                          const struct backing_member *wanted);
void backing_members_free(struct backing_members *members);

// Opens the backing file of an image that has one (header.backing_name is not empty), and adds the
// image's own file to the members. *format is the backing image's format. A file that is a member
// already, under any name, is refused. Returns 0 and *out, or a negative errno with a message.
int backing_open_file(const struct image *image, struct backing_members *members,
                      enum image_format *format, struct file **out, struct error *err);

#endif
