// SPDX-License-Identifier: Apache-2.0
// export.h: the images that are served, each under its name.
#ifndef LAZYCOW_SERVER_EXPORT_H
#define LAZYCOW_SERVER_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/session.h"
#include "qcow2/base/error.h"
#include "qcow2/image.h"
#include "server/file_locking.h"
#include "server/file_in_use.h"
#include "server/log.h"

// How many images one server takes: more than anybody names on a command line, and few enough for a
// LIST reply of names of 4096 bytes to stay small.
#define EXPORTS_MAX 1024

struct backend;
struct loop_workers;
struct export_plans;

enum detect_zeroes { DETECT_ZEROES_OFF, DETECT_ZEROES_ON, DETECT_ZEROES_UNMAP };

// How an image is opened and served; from the command line.
struct export_options {
    bool read_only;
    bool force_share; // no locks; only with read_only
    enum file_locking locking;
    bool direct;    // O_DIRECT
    bool no_flush;  // flushes are not passed to the host
    bool force_fua; // every write is durable before it is answered
    bool unmap;     // discards give space back
    enum detect_zeroes detect_zeroes;
    enum image_format format;
    enum image_format backing_format;
    enum lazy_refcounts lazy_refcounts;
    size_t cache_bytes;       // 0: the engine's default
    unsigned clean_after;     // seconds without a write until an image is made clean; 0: never
    unsigned connections_max; // to this export; 0: as many as to the server
    const char *description;  // may be NULL; borrowed
    const char *default_name; // of a single image given without a name, may be NULL; borrowed
};

// Making an image clean that nobody writes to.
//
//   DUE ──idle for long enough──> RUNNING ──done, or requests came──> DUE
//                                    └──cannot be done──> FAILED ──once more──> RETRYING ──> as RUNNING
//
// A write makes DUE of FAILED, and RUNNING of RETRYING.
enum export_clean {
    EXPORT_CLEAN_DUE,      // when there was no write for a while, if the image needs it
    EXPORT_CLEAN_RUNNING,  // image_clean() is under way
    EXPORT_CLEAN_FAILED,   // since the last write; it is tried again now and then
    EXPORT_CLEAN_RETRYING, // under way once more: the failure was logged already
};

struct export
{
    struct session_export session; // what the protocol says of it
    struct exports *exports;       // that it is one of
    char *name;
    struct export_options options;
    struct image *image;
    unsigned connections; // that use it
    unsigned ops;         // in flight
    uint64_t writes;      // ops that may have changed the image, started so far

    // For making the image clean when it is idle.
    uint64_t writes_seen; // writes at the last tick that saw a new one
    uint64_t idle_since;  // that tick's time, or that of the last try, milliseconds
    enum export_clean clean;
};

// An image that could not be opened, and is left out (--skip-broken).
struct skipped_export {
    char *name;
    char *reason; // one line, for its clients
};

struct exports {
    struct export *list;
    size_t count;
    struct skipped_export *skipped;
    size_t skipped_count;
    bool first_skipped;           // the empty name would have been that one's
    bool skip_broken;             // an image that cannot be opened does not keep the others from it
    struct backend *backend;      // borrowed
    struct log *log;              // borrowed
    struct loop_workers *workers; // borrowed
    unsigned connections_max;     // to all of them together; 0: any number
    // Has clients that have ended give their places back, though their end was not read yet; or NULL.
    void (*find_ended)(void *context);
    void *find_context;
    struct files_in_use files; // of all images and their chains
    bool settle_wanted;        // an image waits for replies to be settled (client.h)
};

// Opens the images of the plans, in order. Nothing is written. With
// skip_broken an image that cannot be opened is left out with a line in the log, as long as one can be
// served. backend, workers and log are borrowed and outlive exports. Returns
// 0, or a negative errno with a message; nothing is open then.
int exports_open(struct exports *exports, const struct export_plans *plans, bool skip_broken,
                 unsigned connections_max, struct backend *backend, struct loop_workers *workers,
                 struct log *log, struct error *err);

// Makes an export of an open image, which it owns from then on; exports, name and options are set. What
// exports_open does for each of them once its image is there.
void export_init(struct export *export, struct image *image);

// Makes everything durable and the images clean, after the last op. Blocking. Tries each image;
// logs each failure and returns the first, or 0.
int exports_finish(struct exports *exports);

// The image of this name that was left out, or NULL; the empty name may be the first one's.
const struct skipped_export *exports_skipped(const struct exports *exports, const void *name,
                                             size_t length);

// Closes the images. After exports_finish, or when no op was ever started.
void exports_close(struct exports *exports);

// Whether no further connection may use the export. Looks for clients that have ended first.
bool export_full(struct export *export);

// The export that a session chose.
struct export *exports_chosen(struct exports *exports, const struct session_export *chosen);

// To be called about once a second with the time in milliseconds: starts to make images clean that
// nobody has written to for a while. Returns whether it wants to be called again.
bool exports_tick(struct exports *exports, uint64_t now);

// Whether no image is being made clean at the moment.
bool exports_quiet(const struct exports *exports);

#endif
