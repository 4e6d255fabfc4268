// SPDX-License-Identifier: Apache-2.0
// storage.h: finds out if two names lead to the same bytes: links, device nodes of one device, a
// loop device and the file under it.
#ifndef LAZYCOW_SERVER_STORAGE_H
#define LAZYCOW_SERVER_STORAGE_H

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>

// A file, by device and inode; a block device by its number alone, because it may have many nodes.
struct storage {
    bool block_device;
    dev_t device;
    ino_t inode; // 0 for a block device
};

struct storage storage_of(const struct stat *st);

bool storage_same(const struct storage *a, const struct storage *b);

// Returns true if writing to one changes the other. For block devices it asks the kernel about the
// layers below: a loop device's file (as this process would find it), the disk of a partition, the
// devices of a mapped one.
bool storage_overlaps(const struct storage *a, const struct storage *b);

#endif
