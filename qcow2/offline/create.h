// SPDX-License-Identifier: Apache-2.0
// create.h: a new, empty image. Format: qcow2 specification, "Header" and "Host cluster
// management".
#ifndef LAZYCOW_QCOW2_OFFLINE_CREATE_H
#define LAZYCOW_QCOW2_OFFLINE_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"

#define CREATE_CLUSTER_BITS_DEFAULT 16
#define CREATE_REFCOUNT_ORDER_DEFAULT 4

enum create_preallocation {
    CREATE_PREALLOCATE_OFF,
    CREATE_PREALLOCATE_METADATA, // every guest cluster has a host cluster, which takes no space yet
    CREATE_PREALLOCATE_SPACE,    // and the host file system has reserved its space ("falloc")
    CREATE_PREALLOCATE_ZEROS,    // and zeros were written to it ("full")
};

struct create_options {
    uint64_t size;            // guest bytes
    unsigned version;         // 2 or 3
    unsigned cluster_bits;    // HEADER_CLUSTER_BITS_MIN..MAX
    unsigned refcount_order;  // 0..6; 4 in version 2
    bool lazy_refcounts;      // version 3 only
    uint8_t compression_type; // of clusters that are compressed later; version 2: zlib only
    enum create_preallocation preallocation;
    const char *backing_name;   // NULL: none
    const char *backing_format; // with backing_name; NULL: none is stored
    // Called now and then with bytes done and bytes in all, both growing; may be NULL.
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
};

// Refuses, with a message, what the format or its other readers cannot hold; looks at nothing but
// the options. name is for messages. Returns 0, or a negative errno: -EINVAL, -EFBIG.
int create_check(const struct create_options *options, const char *name, struct error *err);

// Makes file, whatever it holds, an image; blocking. After a power cut at any point the file is
// what it was, no image at all, or the whole new image: the header is written last. Returns 0, or a
// negative errno with a message, and then the file is no image.
int create_image(struct file *file, const struct create_options *options, struct error *err);

#endif
