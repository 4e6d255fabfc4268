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

// Most images of one server: more than anybody names on a command line, and few enough that a LIST
// reply with names of 4096 bytes stays small.
#define EXPORTS_MAX 1024

struct backend;
struct loop_workers;
struct export_plans;

enum detect_zeroes { DETECT_ZEROES_OFF, DETECT_ZEROES_ON, DETECT_ZEROES_UNMAP };

// How an image is opened and served, from the command line.
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
    // Name of a single image that was given without one; may be NULL; borrowed.
    const char *default_name;
};

// Stages of making an idle image clean.
//
//   DUE ──idle for long enough──> RUNNING ──done, or requests came──> DUE
//                                    └──fails──> FAILED ──tried again──> RETRYING ──> as RUNNING
//
// A write turns FAILED into DUE, and RETRYING into RUNNING.
enum export_clean {
    // To be made clean, if the image needs it, after some time without a write.
    EXPORT_CLEAN_DUE,
    // image_clean() is under way.
    EXPORT_CLEAN_RUNNING,
    // Failed since the last write; tried again now and then.
    EXPORT_CLEAN_FAILED,
    // image_clean() is under way again, after a failure that was logged.
    EXPORT_CLEAN_RETRYING,
};

struct export
{
    // The facts that the protocol tells clients.
    struct session_export session;
    // The list that contains it.
    struct exports *exports;
    char *name;
    struct export_options options;
    struct image *image;
    // Connections that use it.
    unsigned connections;
    unsigned ops; // in flight
    // Ops started so far that may have changed the image.
    uint64_t writes;

    // For making the idle image clean: value of writes at the last tick that saw a new one.
    uint64_t writes_seen;
    // Time of that tick or of the last try, in milliseconds.
    uint64_t idle_since;
    enum export_clean clean;
};

// An image that could not be opened and is left out (--skip-broken).
struct skipped_export {
    char *name;
    // One line that tells its clients why.
    char *reason;
};

struct exports {
    struct export *list;
    size_t count;
    struct skipped_export *skipped;
    size_t skipped_count;
    // The first image, which answers to the empty name, was left out.
    bool first_skipped;
    // An image that cannot be opened is left out, and the others are served.
    bool skip_broken;
    struct backend *backend;      // borrowed
    struct log *log;              // borrowed
    struct loop_workers *workers; // borrowed
    // Limit for all exports together; 0: none.
    unsigned connections_max;
    // Finds clients that have ended but whose end was not read yet, so that they give their places
    // back; or NULL.
    void (*find_ended)(void *context);
    void *find_context;
    // Files of all images and their chains.
    struct files_in_use files;
    // An image waits for replies to be settled (client.h).
    bool settle_wanted;
};

// Opens the images of the plans, in order, and writes nothing. With skip_broken an image that
// cannot be opened is left out with a line in the log, as long as at least one can be served.
// backend, workers and log are borrowed and outlive exports. Returns 0, or a negative errno with a
// message; nothing is open then.
int exports_open(struct exports *exports, const struct export_plans *plans, bool skip_broken,
                 unsigned connections_max, struct backend *backend, struct loop_workers *workers,
                 struct log *log, struct error *err);

// Makes an export of an open image and takes the image over; exports, name and options must be set.
// exports_open() calls this for each image.
void export_init(struct export *export, struct image *image);

// Makes everything durable and the images clean, after the last op. Blocks. Tries each image; logs
// each failure and returns the first, or 0.
int exports_finish(struct exports *exports);

// Returns the left-out image of this name, or NULL. The empty name may stand for the first image.
const struct skipped_export *exports_skipped(const struct exports *exports, const void *name,
                                             size_t length);

// Closes the images. Called after exports_finish, or when no op was ever started.
void exports_close(struct exports *exports);

// Returns true if no further connection may use the export. Looks for clients that have ended
// first.
bool export_full(struct export *export);

// Returns the export that a session chose.
struct export *exports_chosen(struct exports *exports, const struct session_export *chosen);

// Called about once a second with the time in milliseconds: begins to make idle images clean.
// Returns true if it wants to be called again.
bool exports_tick(struct exports *exports, uint64_t now);

// Returns true if no image is being made clean.
bool exports_quiet(const struct exports *exports);

#endif
