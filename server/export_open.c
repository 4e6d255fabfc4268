// SPDX-License-Identifier: Apache-2.0
// export_open.c: opens the files and images of the planned exports.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "server/export.h"
#include "server/export_plan.h"
#include "server/file_backend.h"
#include "server/loop_workers.h"

static void log_from_image(void *context, const char *line)
{
    const struct export *export = context;

    log_line(export->exports->log, LOG_LEVEL_WARNING, "export '%s': %s", export->name, line);
}

// Opens a file, and refuses one that this server already uses. Returns as backend_open_file().
static int export_open_file(struct exports *exports, const char *path,
                            const struct file_open_options *options, struct file **out,
                            struct error *err)
{
    int result = file_in_use_by_output(path, err);

    if (result == 0) {
        result = backend_open_file(exports->backend, path, options, out, err);
    }
    if (result < 0) {
        return result;
    }
    result = files_in_use_add(&exports->files, path, options->read_only, err);
    if (result < 0) {
        file_close(*out);
    }
    return result;
}

static int open_backing(void *context, const char *path, struct file **out, struct error *err)
{
    const struct export *export = context;
    const struct file_open_options options = {
        .read_only = true,
        .direct = export->options.direct,
        .no_flush = export->options.no_flush,
        .force_share = export->options.force_share,
        .locking = export->options.locking,
        .warn = log_from_image,
        .context = context,
    };
    int result = export_open_file(export->exports, path, &options, out, err);

    if (result == -EAGAIN) {
        error_append(err, ", or serve it all the same with --read-only --force-share (-r -U)");
    }
    return result;
}

static void export_open_identify(void *context, const char *path, uint64_t *device, uint64_t *inode)
{
    struct stat st;

    (void)context;
    if (stat(path, &st) == 0) {
        *device = st.st_dev;
        *inode = st.st_ino;
    }
}

static void offload(void *context, struct offload_job *job)
{
    const struct export *export = context;

    loop_workers_run(export->exports->workers, job);
}

static void settle(void *context)
{
    const struct export *export = context;

    export->exports->settle_wanted = true;
}

static void trace_from_image(void *context, const char *line)
{
    const struct export *export = context;

    log_line(export->exports->log, LOG_LEVEL_TRACE, "%s", line);
}

static int open_image(struct exports *exports, struct export *export, const char *path,
                      struct error *err)
{
    const struct export_options *options = &export->options;
    const struct file_open_options file_options = {
        .read_only = options->read_only,
        .direct = options->direct,
        .no_flush = options->no_flush,
        .force_share = options->force_share,
        .locking = options->locking,
        .warn = log_from_image,
        .context = export,
    };
    const struct image_options image_options = {
        .format = options->format,
        .backing_format = options->backing_format,
        .read_only = options->read_only,
        .unmap = options->unmap,
        .lazy_refcounts = options->lazy_refcounts,
        .cache_bytes = options->cache_bytes,
    };
    const struct image_host host = {
        .context = export,
        .open_backing = open_backing,
        .identify = export_open_identify,
        .log = log_from_image,
        .trace = exports->log->level >= LOG_LEVEL_TRACE ? trace_from_image : NULL,
        .offload = offload,
        .settle = settle,
    };
    size_t files_before = exports->files.count;
    struct image *image;
    struct file *file;
    int result;

    result = export_open_file(exports, path, &file_options, &file, err);
    if (result == -EAGAIN) {
        error_append(err, ", or serve it all the same with %s",
                     options->read_only
                         ? "--force-share (-U)"
                         : "--read-only (-r), and --force-share (-U) where others write to it");
    }
    if (result < 0) {
        return result;
    }
    result = image_open(&image, file, &image_options, &host, err);
    if (result < 0) {
        file_close(file);
        files_in_use_keep(&exports->files, files_before);
        return result;
    }
    export_init(export, image);
    return 0;
}

// Leaves out an image that could not be opened, with err as the reason. Takes the name over.
static int skip_export(struct exports *exports, char *name, struct error *err)
{
    struct skipped_export *skipped = &exports->skipped[exports->skipped_count];
    struct error reason;

    // An export with the name "" answers to the empty name itself, at any position.
    exports->first_skipped |= exports->count + exports->skipped_count == 0;
    error_set(&reason, 0, "this image is not served");
    error_append(&reason, ": %s", err->text);
    skipped->name = name;
    skipped->reason = strdup(reason.text);
    exports->skipped_count++;
    if (skipped->reason == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    log_line(exports->log, LOG_LEVEL_ERROR, "export '%s': skipped: %s", name, err->text);
    return 0;
}

// Adds to the message how the other images can be served without this one.
static void advise_skipping(const struct exports *exports, size_t others, struct error *err)
{
    if (others > 0 && exports->skip_broken) {
        error_append(err, "; nothing is served: none of the images can be");
    } else if (others > 0) {
        error_append(err, "; nothing is served; --skip-broken serves the other images");
    }
}

// others: number of further images on the command line.
static int open_export(struct exports *exports, const struct export_plan *plan, size_t others,
                       struct error *err)
{
    struct export *export = &exports->list[exports->count];
    int result;

    *export =
        (struct export){.exports = exports, .name = strdup(plan->name), .options = plan->options};
    if (export->name == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    result = open_image(exports, export, plan->path, err);
    if (result == 0) {
        exports->count++;
        return 0;
    }
    if (result == -ENOENT) {
        export_argument_advise(plan->argument, plan->path, err);
    }
    // At least one image must be served: the last candidate is not left out, and its error ends the
    // start.
    if (exports->skip_broken && exports->skipped_count < others) {
        return skip_export(exports, export->name, err);
    }
    free(export->name);
    advise_skipping(exports, others, err);
    return result;
}

int exports_open(struct exports *exports, const struct export_plans *plans, bool skip_broken,
                 unsigned connections_max, struct backend *backend, struct loop_workers *workers,
                 struct log *log, struct error *err)
{
    assert(plans->count > 0 && plans->count <= EXPORTS_MAX);
    *exports = (struct exports){.connections_max = connections_max,
                                .skip_broken = skip_broken,
                                .backend = backend,
                                .workers = workers,
                                .log = log};
    exports->list = calloc(plans->count, sizeof(*exports->list));
    exports->skipped = calloc(plans->count, sizeof(*exports->skipped));
    if (exports->list == NULL || exports->skipped == NULL) {
        exports_close(exports);
        return error_set(err, ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < plans->count; i++) {
        int result = open_export(exports, &plans->list[i], plans->count - 1, err);

        if (result < 0) {
            exports_close(exports);
            return result;
        }
    }
    return 0;
}
