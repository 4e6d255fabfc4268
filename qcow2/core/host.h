// SPDX-License-Identifier: Apache-2.0
// host.h: what an image needs from the world around it, and how it is to be opened.
#ifndef LAZYCOW_QCOW2_CORE_HOST_H
#define LAZYCOW_QCOW2_CORE_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/offload.h"

enum image_format { IMAGE_FORMAT_UNKNOWN, IMAGE_FORMAT_QCOW2, IMAGE_FORMAT_RAW };

// "qcow2" and "raw"; IMAGE_FORMAT_UNKNOWN for any other name.
enum image_format image_format_parse(const char *name);

enum lazy_refcounts { LAZY_FROM_HEADER, LAZY_ON, LAZY_OFF };

// Memory for L2 slices of one image: 24 MiB map 192 GiB of guest at 64 KiB clusters. QEMU's default is
// 32 MiB, of which it has less resident; with what else this server has in memory, this is no more.
#define IMAGE_CACHE_DEFAULT (24u << 20)

// What the engine needs from the world around it.
struct image_host {
    void *context;
    // Opens a backing file read-only. Returns 0 and *out, which the image then owns, or fills err
    // and returns a negative errno.
    int (*open_backing)(void *context, const char *path, struct file **out, struct error *err);
    // Sets which file a path stands for (struct file), without opening it; leaves both at 0 where that
    // is not known. May be NULL.
    void (*identify)(void *context, const char *path, uint64_t *device, uint64_t *inode);
    // Says one line that an operator should see (a latched error, recovery progress). May be NULL.
    void (*log)(void *context, const char *line);
    // Takes one line for each request and each stage of a sync. NULL: nothing is traced, and nothing
    // is spent on it.
    void (*trace)(void *context, const char *line);
    // Runs the job's work on another thread, then posts its task to the run queue. May be NULL: the
    // engine then does the work itself.
    void (*offload)(void *context, struct offload_job *job);
    // Called when freed clusters cannot be reused because replies still point at them: these are to be
    // settled soon (grace.h). May be NULL where every read fills its buffer.
    void (*settle)(void *context);
};

struct image_options {
    enum image_format format; // of the image itself; UNKNOWN is taken as qcow2
    // For a header that names a backing file but no format; else UNKNOWN.
    enum image_format backing_format;
    bool read_only;
    bool unmap; // give discarded clusters back to the host (--discard=unmap)
    enum lazy_refcounts lazy_refcounts;
    size_t cache_bytes; // 0 = IMAGE_CACHE_DEFAULT
};

#endif
