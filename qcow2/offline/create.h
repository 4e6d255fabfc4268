// SPDX-License-Identifier: Apache-2.0
// create.h: creates a new, empty image. Format: qcow2 specification, "Header" and "Host cluster
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
    // Every guest cluster has a host cluster, which takes no space yet.
    CREATE_PREALLOCATE_METADATA,
    CREATE_PREALLOCATE_SPACE, // the host file system has also reserved its space ("falloc")
    CREATE_PREALLOCATE_ZEROS, // zeros were also written to it ("full")
};

struct create_options {
    uint64_t size;           // guest bytes
    unsigned version;        // 2 or 3
    unsigned cluster_bits;   // HEADER_CLUSTER_BITS_MIN..MAX
    unsigned refcount_order; // 0..6; 4 in version 2
    bool lazy_refcounts;     // version 3 only
    // Compression of clusters that are compressed later. Version 2: zlib only.
    uint8_t compression_type;
    enum create_preallocation preallocation;
    const char *backing_name;   // NULL: none
    const char *backing_format; // of backing_name; NULL: none is stored
    // Called now and then with the bytes done and the bytes in all, both growing. May be NULL.
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
};

// Refuses options that the format or its other readers cannot handle. Looks at the options only.
// name is for messages. Returns 0, or -EINVAL or -EFBIG with a message.
int create_check(const struct create_options *options, const char *name, struct error *err);

// Makes file an image, whatever it holds; blocking. After a power cut at any point the file is
// unchanged, no image at all, or the whole new image: the header is written last. Returns 0, or a
// negative errno with a message, and then the file is no image.
int create_image(struct file *file, const struct create_options *options, struct error *err);

#endif
