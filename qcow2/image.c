// SPDX-License-Identifier: Apache-2.0
#include "qcow2/image.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/epoch.h"
#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/inflight.h"
#include "qcow2/base/runq.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/corrupt.h"
#include "qcow2/core/host.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/durable/clean.h"
#include "qcow2/durable/recover.h"
#include "qcow2/durable/sync.h"
#include "qcow2/format/backing_name.h"
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

// Images in a chain: more than anybody stacks.
#define BACKING_DEPTH_MAX 200

// The size of a raw image counts whole sectors, as elsewhere; zeros are behind the file's end.
#define RAW_SECTOR 512u
#define RAW_BLOCK_SIZE 4096u

enum image_format image_format_parse(const char *name)
{
    if (strcmp(name, "qcow2") == 0)
        return IMAGE_FORMAT_QCOW2;
    // QEMU's drivers of files and devices, as formats: the bytes as they are.
    if (strcmp(name, "raw") == 0 || strcmp(name, "file") == 0 || strcmp(name, "host_device") == 0)
        return IMAGE_FORMAT_RAW;
    return IMAGE_FORMAT_UNKNOWN;
}

// ---- Opening

static int open_behind(struct image **out, struct file *file, const struct image_options *options,
                       const struct image_host *host, const struct image *overlay,
                       struct error *err);

// Whether a file is the one at path, or what was opened there (NULL: not yet).
static bool same_file(const struct file *a, const char *path, const struct file *opened)
{
    if (!opened)
        return strcmp(a->name, path) == 0;
    return (a->device != 0 || a->inode != 0) && a->device == opened->device &&
           a->inode == opened->inode;
}

// Whether the image at path may stand behind this one; asked before and after it is opened: by name,
// as it may be locked, and by what it is.
static int check_chain(const struct image *image, const char *path, const struct file *file,
                       struct error *err)
{
    unsigned depth = 0;

    for (const struct image *above = image; above; above = above->overlay) {
        if (same_file(above->file, path, file))
            return error_set(err, ELOOP,
                             "'%s' stands behind itself; give one of the images another backing "
                             "file with 'qemu-img rebase -u'",
                             path);
        if (++depth >= BACKING_DEPTH_MAX)
            return error_set(err, ELOOP,
                             "more than %d images in the backing chain; shorten it with "
                             "'qemu-img commit' or 'qemu-img rebase'",
                             BACKING_DEPTH_MAX);
    }
    return 0;
}

static int open_backing(struct image *image, struct error *err)
{
    const struct header *header = &image->header;
    struct image_options options = image->options;
    struct file *file = NULL;

    if (header->backing_name[0] == '\0')
        return 0;
    options.format = header->backing_format[0] ? image_format_parse(header->backing_format)
                                               : image->options.backing_format;
    if (options.format == IMAGE_FORMAT_UNKNOWN && header->backing_format[0])
        return error_set(err, ENOTSUP,
                         "'%s': backing format '%s' is not supported, only qcow2 and raw",
                         image->file->name, header->backing_format);
    if (options.format == IMAGE_FORMAT_UNKNOWN)
        return error_set(
            err, EINVAL,
            "'%s': the header names the backing file '%s' but not its format; say it with "
            "--backing-format, or store it with 'qemu-img rebase -u -F'",
            image->file->name, header->backing_name);
    if (!backing_name_is_local(header->backing_name))
        return error_set(
            err, ENOTSUP,
            "'%s': the backing file '%s' is not a local file; make it one with 'qemu-img "
            "convert' and name that with 'qemu-img rebase -u'",
            image->file->name, header->backing_name);

    char *path = backing_name_resolve(image->file->name, header->backing_name);
    if (!path)
        return error_set(err, ENOMEM, "'%s': no memory", image->file->name);
    int result = check_chain(image, path, NULL, err);
    if (result == 0)
        result = image->host.open_backing(image->host.context, path, &file, err);
    if (result == 0)
        result = check_chain(image, path, file, err);
    free(path);
    if (result < 0) {
        if (file)
            file_close(file);
        error_prefix(err, "'%s': backing file", image->file->name);
        return result;
    }
    options.read_only = true;
    result = open_behind(&image->backing, file, &options, &image->host, image, err);
    if (result < 0)
        file_close(file);
    return result;
}

// The modules' state, in one piece of memory.
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
    if (result == 0)
        result = open_backing(image, err);
    if (result == 0 && !image->read_only)
        result = writable_prepare(image, err);
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

// Frees what the image holds but not its file.
static void release(struct image *image)
{
    struct op_work *work;

    while ((work = SLIST_FIRST(&image->spare_work)) != NULL) {
        SLIST_REMOVE_HEAD(&image->spare_work, spare_link);
        free(work);
    }
    if (image->backing)
        image_close(image->backing);
    if (image->parts) {
        snapshot_table_free(&image->snapshots);
        l1_free(&image->l1);
        cache_free(image->cache);
        refcounts_free(image->refcounts);
        quarantine_free(image->quarantine);
        punch_free(image->punch);
        guard_free(image->guard);
        sync_free(image->sync);
        recover_free(image->recovery);
        inflated_cache_free(image->inflated);
        chain_free(image->chain);
        free(image->parts);
    }
    free(image);
}

static int open_behind(struct image **out, struct file *file, const struct image_options *options,
                       const struct image_host *host, const struct image *overlay,
                       struct error *err)
{
    struct image *image = calloc(1, sizeof(*image));
    if (!image)
        return error_set(err, ENOMEM, "'%s': no memory", file->name);
    image->file = file;
    image->overlay = overlay;
    image->runq = file->runq;
    image->host = *host;
    image->options = *options;
    image->read_only = options->read_only;
    if (image->options.cache_bytes == 0)
        image->options.cache_bytes = IMAGE_CACHE_DEFAULT;
    image->steps = request_steps;
    epochs_init(&image->plans);
    epochs_init(&image->loans);
    waitq_init(&image->bounce_room);
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

int image_open(struct image **out, struct file *file, const struct image_options *options,
               const struct image_host *host, struct error *err)
{
    return open_behind(out, file, options, host, NULL, err);
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

struct finish {
    bool ended;
    int result;
};

static void finish_ended(void *context, int result)
{
    struct finish *finish = context;

    finish->ended = true;
    finish->result = result;
}

// Runs what is queued; waits for I/O where there is nothing.
static void run_some(struct image *image)
{
    if (!runq_run(image->runq))
        image->file->ops->wait(image->file);
}

// Host space behind the last cluster goes back; a file that ends inside it is filled up. Where not
// all references are known, only what was reserved and not taken goes.
static int fit_file(struct image *image)
{
    uint64_t last = recover_complete(image) ? refcounts_end(image->refcounts, image->alloc->fresh)
                                            : image->alloc->fresh;
    uint64_t end = last << image->geometry.cluster_bits;
    int64_t size = file_size(image->file);

    if (end == 0 || size < 0 || (uint64_t)size == end || !image->file->fresh_is_zero)
        return 0;
    return file_do_blocking(image->file, FILE_TRUNCATE, end, 0);
}

int image_finish(struct image *image, struct error *err)
{
    struct finish finish = {0};

    if (image->read_only || image->format != IMAGE_FORMAT_QCOW2)
        return 0;
    while (image->recovery->running || image->corrupt->busy)
        run_some(image);
    if (image->latched_error < 0)
        return error_set(err, -image->latched_error,
                         "'%s': an earlier error left it as after a crash; run 'lazycow check'",
                         image->file->name);
    image->sync->clean_final = true;
    if (image_needs_clean(image)) {
        image_clean(image, finish_ended, &finish);
        while (!finish.ended)
            run_some(image);
    }
    if ((finish.result == 0 || finish.result == -EBUSY) && image->alloc->taken) {
        int result = fit_file(image);

        finish.result = result < 0 ? result : finish.result;
    }
    if (!recover_complete(image))
        return error_set(err, EUCLEAN,
                         "'%s': its tables are damaged or cannot be read, so it stays marked as "
                         "not cleanly closed; run 'lazycow check -r all'",
                         image->file->name);
    if (finish.result < 0)
        return error_set(
            err, -finish.result,
            "'%s': cannot write the refcounts: %s; the image is sound but not clean, and will "
            "be when it was served once more",
            image->file->name, strerror(-finish.result));
    return 0;
}

void image_close(struct image *image)
{
    struct file *file = image->file;

    assert(image->op_count == 0);
    // What went on for nobody: reading ahead, punching holes.
    file_drain(file);
    release(image);
    file_close(file);
}
