// SPDX-License-Identifier: Apache-2.0
// export_open.c: exports from the command line's arguments: their names, their files, their images.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "server/export.h"
#include "server/file_backend.h"
#include "server/workers.h"

static void log_from_image(void *context, const char *line)
{
    const struct export *export = context;

    log_line(export->exports->log, LOG_LEVEL_WARNING, "export '%s': %s", export->name, line);
}

static int open_backing(void *context, const char *path, struct file **out, struct error *err)
{
    const struct exports *exports = ((const struct export *)context)->exports;
    const struct file_open_options options = {
        .read_only = true,
        .direct = exports->options.direct,
        .no_flush = exports->options.no_flush,
        .lock = true,
        .force_share = exports->options.force_share,
    };

    return backend_open_file(exports->backend, path, &options, out, err);
}

static void offload(void *context, struct offload_job *job)
{
    const struct export *export = context;

    workers_run(export->exports->workers, job);
}

static void recall(void *context)
{
    const struct export *export = context;

    export->exports->recalled = true;
}

static int open_image(struct exports *exports, struct export *export, const char *path,
                      struct error *err)
{
    const struct export_options *options = &exports->options;
    const struct file_open_options file_options = {
        .read_only = options->read_only,
        .direct = options->direct,
        .no_flush = options->no_flush,
        .lock = true,
        .force_share = options->force_share,
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
        .log = log_from_image,
        .offload = offload,
        .recall = recall,
    };
    struct image *image;
    struct file *file;
    int result;

    result = backend_open_file(exports->backend, path, &file_options, &file, err);
    if (result < 0) {
        return result;
    }
    result = image_open(&image, file, &image_options, &host, err);
    if (result < 0) {
        file_close(file);
        return result;
    }
    export_init(export, image);
    return 0;
}

static int open_export(struct exports *exports, const struct export_argument *argument,
                       struct error *err)
{
    struct export *export = &exports->list[exports->count];
    const char *path;
    int result;

    *export = (struct export){.exports = exports};
    result =
        export_argument_split(argument, exports->options.default_name, &export->name, &path, err);
    for (size_t i = 0; result == 0 && i < exports->count; i++) {
        if (strcmp(exports->list[i].name, export->name) == 0) {
            result = error_set(err, EINVAL,
                               "'%s': there is an export '%s' already; give another name with "
                               "NAME=IMAGE or --export NAME=IMAGE",
                               path, export->name);
        }
    }
    if (result == 0) {
        result = open_image(exports, export, path, err);
        if (result == -ENOENT) {
            export_argument_advise(argument, path, err);
        }
    }
    if (result < 0) {
        free(export->name);
        return result;
    }
    exports->count++;
    return 0;
}

int exports_open(struct exports *exports, const struct export_options *options,
                 struct backend *backend, struct workers *workers, struct log *log,
                 const struct export_argument *arguments, size_t count, struct error *err)
{
    assert(count > 0 && count <= EXPORTS_MAX);
    *exports =
        (struct exports){.options = *options, .backend = backend, .workers = workers, .log = log};
    exports->list = calloc(count, sizeof(*exports->list));
    if (exports->list == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        int result = open_export(exports, &arguments[i], err);

        if (result < 0) {
            exports_close(exports);
            return result;
        }
    }
    return 0;
}
