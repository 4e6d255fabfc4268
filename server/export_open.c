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

// Whether the text is well-formed UTF-8 ("Syntax of UTF-8 Byte Sequences" in RFC 3629).
static bool utf8_valid(const char *text)
{
    // For each length of a sequence: the lead byte's mask and value, the least code point.
    static const struct {
        unsigned char mask, lead;
        uint32_t least;
    } forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    const unsigned char *p = (const unsigned char *)text;

    while (*p != '\0') {
        uint32_t point;
        size_t more = 0; // continuation bytes

        while (more < 4 && (*p & forms[more].mask) != forms[more].lead) {
            more++;
        }
        if (more == 4) {
            return false;
        }
        point = *p & (unsigned char)~forms[more].mask;
        for (size_t i = 1; i <= more; i++) {
            if ((p[i] & 0xc0) != 0x80) {
                return false;
            }
            point = point << 6 | (p[i] & 0x3f);
        }
        if (point < forms[more].least || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) {
            return false;
        }
        p += more + 1;
    }
    return true;
}

// The name for an image that was given without one: the last part of its path without its
// extension. Returns NULL when there is no memory.
static char *name_from_path(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    const char *dot = strrchr(base, '.');

    // A leading dot begins a hidden file's name, not an extension.
    return dot != NULL && dot != base ? strndup(base, (size_t)(dot - base)) : strdup(base);
}

// Splits [NAME=]IMAGE. *name is allocated, *path points into the argument.
static int parse_argument(const char *argument, const char *default_name, char **name,
                          const char **path, struct error *err)
{
    const char *equals = strchr(argument, '=');
    const char *slash = strchr(argument, '/');

    if (equals != NULL && (slash == NULL || equals < slash)) {
        *name = strndup(argument, (size_t)(equals - argument));
        *path = equals + 1;
    } else {
        *name = default_name != NULL ? strdup(default_name) : name_from_path(argument);
        *path = argument;
    }
    if (*name == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    if (**path == '\0') {
        return error_set(err, EINVAL, "'%s' names no image; write NAME=IMAGE or IMAGE", argument);
    }
    // Protocol, "Conventions": strings are UTF-8 of at most 4096 bytes.
    if (strlen(*name) > SESSION_STRING_MAX || !utf8_valid(*name)) {
        return error_set(err, EINVAL,
                         "'%s': an export's name must be UTF-8 of at most %d bytes; give another "
                         "with NAME=IMAGE",
                         *path, SESSION_STRING_MAX);
    }
    return 0;
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

static int open_export(struct exports *exports, const char *argument, struct error *err)
{
    struct export *export = &exports->list[exports->count];
    const char *path;
    int result;

    *export = (struct export){.exports = exports};
    result = parse_argument(argument, exports->options.default_name, &export->name, &path, err);
    for (size_t i = 0; result == 0 && i < exports->count; i++) {
        if (strcmp(exports->list[i].name, export->name) == 0) {
            result = error_set(err, EINVAL,
                               "'%s': there is an export '%s' already; give another name with "
                               "NAME=IMAGE",
                               path, export->name);
        }
    }
    if (result == 0) {
        result = open_image(exports, export, path, err);
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
                 char *const *arguments, size_t count, struct error *err)
{
    assert(count > 0 && count <= EXPORTS_MAX);
    *exports =
        (struct exports){.options = *options, .backend = backend, .workers = workers, .log = log};
    exports->list = calloc(count, sizeof(*exports->list));
    if (exports->list == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        int result = open_export(exports, arguments[i], err);

        if (result < 0) {
            exports_close(exports);
            return result;
        }
    }
    return 0;
}
