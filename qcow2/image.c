// SPDX-License-Identifier: Apache-2.0
#include "qcow2/image.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/backing.h"
#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/grace.h"
#include "qcow2/base/inflight.h"
#include "qcow2/base/runq.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/corrupt.h"
#include "qcow2/core/host.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/durable/recover.h"
#include "qcow2/durable/sync.h"
#include "qcow2/format/entry.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/header.h"
#include "qcow2/format/l1.h"
#include "qcow2/format/snapshot_table.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/mapping/chain.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/request/inflated_cache.h"
#include "qcow2/request/request.h"
#include "qcow2/request/steps.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"
#include "qcow2/writable.h"

// A raw image is rounded up to whole sectors, as in QEMU; the bytes behind the file's end are
// zeros.
#define RAW_SECTOR 512u
#define RAW_BLOCK_SIZE 4096u

// ---- Opening

// The state of the modules, in one allocation.
struct image_parts {
    struct cache cache;
    struct inflated_cache inflated;
    struct chain chain;
    struct refcounts refcounts;
    struct alloc alloc;
    struct quarantine quarantine;
    struct punch punch;
    struct guard guard;
    struct sync sync;
    struct corrupt corrupt;
    struct recovery recovery;
};

static int make_parts(struct image *image)
{
    struct image_parts *parts = calloc(1, sizeof(*parts));

    if (!parts)
        return -ENOMEM;
    image->parts = parts;
    image->cache = &parts->cache;
    image->inflated = &parts->inflated;
    image->chain = &parts->chain;
    image->refcounts = &parts->refcounts;
    image->alloc = &parts->alloc;
    image->quarantine = &parts->quarantine;
    image->punch = &parts->punch;
    image->guard = &parts->guard;
    image->sync = &parts->sync;
    image->corrupt = &parts->corrupt;
    image->recovery = &parts->recovery;
    return 0;
}

static int open_qcow2(struct image *image, struct error *err)
{
    int64_t size = file_size(image->file);
    int result = size < 0 ? error_set(err, (int)-size, "'%s': cannot tell its size: %s",
                                      image->file->name, strerror((int)-size))
                          : header_read(image->file, &image->header, err);

    if (result < 0)
        return result;
    image->geometry = geometry_from_header(&image->header);
    image->entry_context = (struct entry_context){.version = image->header.version,
                                                  .cluster_bits = image->header.cluster_bits,
                                                  .file_bytes = (uint64_t)size};
    image->size = image->header.size;
    if (make_parts(image) < 0)
        return error_set(err, ENOMEM, "'%s': no memory", image->file->name);
    inflight_init(&image->inflight);
    LIST_INIT(&image->table_copies);
    inflated_cache_init(image->inflated);
    sync_init(image);
    quarantine_init(image->quarantine, image);
    punch_init(image->punch, image);
    guard_init(image->guard);
    alloc_init(image->alloc, image, ALLOC_FRESH_UNKNOWN, 0, false);
    if (cache_init(image->cache, image->options.cache_bytes, image->geometry.piece_bytes) < 0)
        return error_set(err, ENOMEM, "'%s': no memory for the cache", image->file->name);
    if ((image->header.incompatible & HEADER_INCOMPATIBLE_CORRUPT) && !image->read_only) {
        image_log(image, "is marked corrupt: served read-only; run 'lazycow check'");
        image->read_only = true;
    }
    result = l1_read(&image->l1, image->file, &image->header, &image->geometry, err);
    if (result == 0 && !image->read_only)
        result = snapshot_table_read(image->file, &image->header, &image->snapshots, err);
    return result;
}

static int open_raw(struct image *image, struct error *err)
{
    int64_t size = file_size(image->file);

    if (size < 0)
        return error_set(err, (int)-size, "'%s': cannot tell its size: %s", image->file->name,
                         strerror((int)-size));
    if (!image->read_only)
        return error_set(err, ENOTSUP, "'%s': raw images are served read-only; use --read-only",
                         image->file->name);
    image->size = ((uint64_t)size + RAW_SECTOR - 1) / RAW_SECTOR * RAW_SECTOR;
    image->geometry.cluster_size = RAW_BLOCK_SIZE;
    return 0;
}

// Frees everything that the image holds except its file and its backing images.
static void release(struct image *image)
{
    struct op_work *work;

    while ((work = SLIST_FIRST(&image->spare_work)) != NULL) {
        SLIST_REMOVE_HEAD(&image->spare_work, spare_link);
        free(work);
    }
    if (image->parts) {
        snapshot_table_free(&image->snapshots);
        l1_free(&image->l1);
        cache_free(image->cache);
        refcounts_free(image->refcounts);
        quarantine_free(image->quarantine);
        punch_free(image->punch);
        guard_free(image->guard);
        sync_free(image->sync);
        inflated_cache_free(image->inflated);
        chain_free(image->chain);
        free(image->parts);
    }
    free(image);
}

// Opens one image without its backing images and without the parts that only writing needs.
// Parameters as image_open().
static int open_layer(struct image **out, struct file *file, const struct image_options *options,
                      const struct image_host *host, struct error *err)
{
    struct image *image = calloc(1, sizeof(*image));
    if (!image)
        return error_set(err, ENOMEM, "'%s': no memory", file->name);
    image->file = file;
    image->runq = file->runq;
    image->host = *host;
    image->options = *options;
    image->read_only = options->read_only;
    if (image->options.cache_bytes == 0)
        image->options.cache_bytes = IMAGE_CACHE_DEFAULT;
    image->machines = request_machines;
    LIST_INIT(&image->running);
    grace_init(&image->grace, host->settle, host->context);
    waitq_init(&image->bounce_room, "memory for copies on write");
    SLIST_INIT(&image->spare_work);
    image->format = options->format == IMAGE_FORMAT_RAW ? IMAGE_FORMAT_RAW : IMAGE_FORMAT_QCOW2;

    int result = image->format == IMAGE_FORMAT_RAW ? open_raw(image, err) : open_qcow2(image, err);
    if (result < 0) {
        release(image);
        return result;
    }
    *out = image;
    return 0;
}

// Opens the backing images of top one after the other: memory and descriptors alone limit the
// length of a chain. On failure the images opened so far stay attached to top.
static int open_chain(struct image *top, struct error *err)
{
    struct backing_members members = {0};
    int result = 0;

    for (struct image *image = top; result == 0 && image; image = image->backing) {
        struct image_options options = image->options;
        struct file *file;

        if (image->format != IMAGE_FORMAT_QCOW2 || image->header.backing_name[0] == '\0')
            break;
        options.read_only = true;
        result = backing_open_file(image, &members, &options.format, &file, err);
        if (result < 0)
            break;
        result = open_layer(&image->backing, file, &options, &image->host, err);
        if (result < 0)
            file_close(file);
    }
    backing_members_free(&members);
    return result;
}

int image_open(struct image **out, struct file *file, const struct image_options *options,
               const struct image_host *host, struct error *err)
{
    struct image *image;
    int result = open_layer(&image, file, options, host, err);

    if (result < 0)
        return result;
    result = open_chain(image, err);
    if (result == 0 && image->format == IMAGE_FORMAT_QCOW2 && !image->read_only)
        result = writable_prepare(image, err);
    if (result < 0) {
        image_close(image->backing);
        release(image);
        return result;
    }
    *out = image;
    return 0;
}

uint64_t image_size(const struct image *image)
{
    return image->size;
}

uint64_t image_cluster_size(const struct image *image)
{
    return image->geometry.cluster_size;
}

bool image_read_only(const struct image *image)
{
    return image->read_only;
}

const char *image_name(const struct image *image)
{
    return image->file->name;
}

// ---- The end

void image_close(struct image *image)
{
    while (image) {
        struct image *backing = image->backing;
        struct file *file = image->file;

        assert(image->op_count == 0);
        // Read-ahead and hole punching may still be in flight; no op waits for them.
        file_drain(file);
        release(image);
        file_close(file);
        image = backing;
    }
}
