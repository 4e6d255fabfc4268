// SPDX-License-Identifier: Apache-2.0
#include "server/export.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"

// Block size that clients are advised to prefer, in bytes: the page size of their caches, and small
// enough for clients that take it for a sector size. Any offset and length is served.
#define EXPORT_BLOCK_PREFERRED 4096u

// Returns true if a client may open several connections. That holds for writers too: all
// connections share one engine, in which a flush covers the writes of all of them. A client that is
// told so but then refused a second connection gives up.
static bool takes_several(const struct export *export)
{
    return export->options.connections_max != 1 && export->exports->connections_max != 1;
}

static uint16_t export_transmission_flags(const struct export *export)
{
    unsigned flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    if (takes_several(export)) {
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    }
    if (image_read_only(export->image)) {
        flags |= NBD_FLAG_READ_ONLY;
    } else {
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    }
    return (uint16_t)flags;
}

void export_init(struct export *export, struct image *image)
{
    export->image = image;
    export->session = (struct session_export){
        .name = export->name,
        .description = export->options.description,
        .size = image_size(image),
        .flags = export_transmission_flags(export),
        .block_min = 1,
        .block_preferred = EXPORT_BLOCK_PREFERRED,
        .block_max = SESSION_PAYLOAD_MAX,
        .contexts = SESSION_CONTEXT_ALLOCATION_DEPTH,
    };
}

static bool clean_runs(const struct export *export)
{
    return export->clean == EXPORT_CLEAN_RUNNING || export->clean == EXPORT_CLEAN_RETRYING;
}

int exports_finish(struct exports *exports)
{
    int first = 0;

    for (size_t i = 0; i < exports->count; i++) {
        struct error err;
        int result;

        assert(exports->list[i].ops == 0 && !clean_runs(&exports->list[i]));
        result = image_finish(exports->list[i].image, &err);
        if (result < 0) {
            log_line(exports->log, LOG_LEVEL_ERROR, "%s", err.text);
            first = first == 0 ? result : first;
        }
    }
    return first;
}

void exports_close(struct exports *exports)
{
    for (size_t i = 0; i < exports->count; i++) {
        image_close(exports->list[i].image);
        free(exports->list[i].name);
    }
    free(exports->list);
    files_in_use_free(&exports->files);
    exports->list = NULL;
    exports->count = 0;
    for (size_t i = 0; i < exports->skipped_count; i++) {
        free(exports->skipped[i].name);
        free(exports->skipped[i].reason);
    }
    free(exports->skipped);
    exports->skipped = NULL;
    exports->skipped_count = 0;
}

const struct skipped_export *exports_skipped(const struct exports *exports, const void *name,
                                             size_t length)
{
    for (size_t i = 0; i < exports->skipped_count; i++) {
        const struct skipped_export *skipped = &exports->skipped[i];

        if (strlen(skipped->name) == length && memcmp(skipped->name, name, length) == 0) {
            return skipped;
        }
    }
    return length == 0 && exports->first_skipped ? &exports->skipped[0] : NULL;
}

struct export *exports_chosen(struct exports *exports, const struct session_export *chosen)
{
    for (size_t i = 0; i < exports->count; i++) {
        if (&exports->list[i].session == chosen) {
            return &exports->list[i];
        }
    }
    return NULL;
}

static bool is_full(const struct export *export)
{
    return export->options.connections_max > 0 &&
           export->connections >= export->options.connections_max;
}

bool export_full(struct export *export)
{
    struct exports *exports = export->exports;

    if (is_full(export) && exports->find_ended != NULL) {
        exports->find_ended(exports->find_context);
    }
    return is_full(export);
}

static void on_cleaned(void *context, int result)
{
    struct export *export = context;
    struct log *log = export->exports->log;
    bool retried = export->clean == EXPORT_CLEAN_RETRYING;

    if (result == 0) {
        export->clean = EXPORT_CLEAN_DUE;
        log_line(log, LOG_LEVEL_DEBUG, "export '%s': idle, image made clean", export->name);
        return;
    }
    if (result == -EBUSY) {
        export->clean = retried ? EXPORT_CLEAN_FAILED : EXPORT_CLEAN_DUE;
        return;
    }
    export->clean = EXPORT_CLEAN_FAILED;
    // Logged once until the next write, however often cleaning is tried.
    if (!retried) {
        log_line(
            log, LOG_LEVEL_WARNING,
            "export '%s': the idle image could not be made clean: %s; until it can, tried every "
            "%u seconds, %llu bytes of what was answered are not durable",
            export->name, strerror(-result), export->options.clean_after,
            (unsigned long long)image_bytes_at_stake(export->image));
    }
}

bool exports_tick(struct exports *exports, uint64_t now)
{
    bool again = false;

    for (size_t i = 0; i < exports->count; i++) {
        struct export *export = &exports->list[i];

        again |= image_tick(export->image);
        if (export->options.clean_after == 0) {
            continue;
        }
        if (export->writes != export->writes_seen) {
            export->writes_seen = export->writes;
            export->idle_since = now;
            export->clean = clean_runs(export) ? EXPORT_CLEAN_RUNNING : EXPORT_CLEAN_DUE;
        }
        if (clean_runs(export) || !image_needs_clean(export->image)) {
            continue;
        }
        again = true;
        if (export->ops == 0 && now - export->idle_since >= export->options.clean_after * 1000ull) {
            export->clean =
                export->clean == EXPORT_CLEAN_FAILED ? EXPORT_CLEAN_RETRYING : EXPORT_CLEAN_RUNNING;
            export->idle_since = now;
            image_clean(export->image, on_cleaned, export);
        }
    }
    return again;
}

bool exports_quiet(const struct exports *exports)
{
    for (size_t i = 0; i < exports->count; i++) {
        if (clean_runs(&exports->list[i])) {
            return false;
        }
    }
    return true;
}
