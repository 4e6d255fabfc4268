// SPDX-License-Identifier: Apache-2.0
// host.h: the services that an image needs from the program around it, and the options of opening
// it.
#ifndef LAZYCOW_QCOW2_CORE_HOST_H
#define LAZYCOW_QCOW2_CORE_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/offload.h"

enum image_format { IMAGE_FORMAT_UNKNOWN, IMAGE_FORMAT_QCOW2, IMAGE_FORMAT_RAW };

// Parses "qcow2" or "raw" (with QEMU's aliases of raw). Returns IMAGE_FORMAT_UNKNOWN for any other
// name.
enum image_format image_format_parse(const char *name);

enum lazy_refcounts { LAZY_FROM_HEADER, LAZY_ON, LAZY_OFF };

// Memory for the L2 slices of one image in bytes: 24 MiB map 192 GiB of guest at 64 KiB clusters.
// QEMU's default is 32 MiB, of which less is resident; with its other memory this server takes no
// more.
#define IMAGE_CACHE_DEFAULT (24u << 20)

// The services that the program around the engine provides.
struct image_host {
    void *context;
    // Opens a backing file read-only. Returns 0 and *out, which the image then owns, or fills err
    // and returns a negative errno.
    int (*open_backing)(void *context, const char *path, struct file **out, struct error *err);
    // Sets the identity of the file that a path stands for (device and inode of struct file),
    // without opening it; sets both to 0 when it is not known. May be NULL.
    void (*identify)(void *context, const char *path, uint64_t *device, uint64_t *inode);
    // Logs one line that an operator should see (a latched error, recovery progress). May be NULL.
    void (*log)(void *context, const char *line);
    // Takes one line for each request and each stage of a sync. NULL: nothing is traced, and
    // tracing costs nothing.
    void (*trace)(void *context, const char *line);
    // Runs the job's work on another thread, then posts its task to the run queue. May be NULL: the
    // engine then does the work itself.
    void (*offload)(void *context, struct offload_job *job);
    // Called when freed clusters cannot be reused because replies still point at them. The owners
    // settle these replies soon, but not from inside this call (grace.h). May be NULL where every
    // read fills its buffer.
    void (*settle)(void *context);
};

struct image_options {
    // Format of the image itself. IMAGE_FORMAT_UNKNOWN means qcow2.
    enum image_format format;
    // Format of a backing file whose format the header does not name; else IMAGE_FORMAT_UNKNOWN.
    enum image_format backing_format;
    bool read_only;
    // Give discarded clusters back to the host (--discard=unmap).
    bool unmap;
    enum lazy_refcounts lazy_refcounts;
    size_t cache_bytes; // 0 = IMAGE_CACHE_DEFAULT
};

#endif
