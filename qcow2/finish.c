// SPDX-License-Identifier: Apache-2.0
// finish.c: ends an image that was served, well or badly, and composes the message about a bad end.
#include <errno.h>
#include <string.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/runq.h"
#include "qcow2/core/corrupt.h"
#include "qcow2/core/dirty_bit.h"
#include "qcow2/core/host.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/clean.h"
#include "qcow2/durable/lost.h"
#include "qcow2/durable/recover.h"
#include "qcow2/durable/sync.h"
#include "qcow2/durable/sync_state.h"
#include "qcow2/format/format.h"
#include "qcow2/format/header.h"
#include "qcow2/image.h"
#include "qcow2/offline/check.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/refcount.h"

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

// Runs the queue once; waits for an I/O when the queue is empty.
static void run_some(struct image *image)
{
    if (!runq_run(image->runq))
        image->file->ops->wait(image->file);
}

// Gives the host space behind the last cluster back, and fills up a file that ends inside that
// cluster. When some references are unknown, only space that was reserved and not taken goes back.
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

// ---- A bad end

// Tries to set the dirty bit on disk when refcounts may count clusters that no table refers to. The
// next server then counts the references anew, and nothing leaks.
static void mark_dirty(struct image *image)
{
    unsigned char bytes[8];
    bool stale = refcounts_dirty(image->refcounts) || sync_needed(image);

    if (image->header.version < 3 || !stale || image->dirty_bit == DIRTY_BIT_SET)
        return;
    format_put64(bytes, image->header.incompatible | HEADER_INCOMPATIBLE_DIRTY);
    if (file_write_blocking(image->file, bytes, HEADER_OFFSET_INCOMPATIBLE, sizeof(bytes)) == 0)
        image->dirty_bit = DIRTY_BIT_SETTING;
}

// Frees leaked clusters now when the dirty bit cannot be set, as in version 2.
static void free_leaks(struct image *image, struct error *err)
{
    const struct check_options options = {.repair = CHECK_REPAIR_LEAKS};
    struct check_result result;
    struct error ignored;

    if (check_image(image->file, &options, &result, &ignored) == 0 && result.leaks == 0)
        error_append(err, "; no cluster leaks");
    else
        error_append(err, "; clusters may leak: run 'lazycow check -r leaks'");
}

static void append_lost(struct image *image, const struct lost *lost, struct error *err)
{
    if (lost->clusters == 0 && lost->error == 0) {
        error_append(err, "; nothing that was written is lost");
        return;
    }
    error_append(
        err,
        "; LOST: %llu clusters (%llu bytes, between guest offsets %llu and %llu) that were "
        "written or discarded since the last flush",
        (unsigned long long)lost->clusters, (unsigned long long)lost->bytes,
        (unsigned long long)lost->first, (unsigned long long)lost->end);
    if (lost->error < 0)
        error_append(err, ", and at most %llu bytes in all, for not all tables can be read (%s)",
                     (unsigned long long)sync_bytes_at_stake(image), strerror(-lost->error));
}

// The host had no room, or there was no memory: the state on disk is known.
static int end_without_room(struct image *image, int result, struct error *err)
{
    struct lost lost;

    mark_dirty(image);
    // Changes in place are on disk once a barrier has succeeded.
    int synced = file_do_blocking(image->file, FILE_DATASYNC, 0, 0);
    if (synced == 0 && image->dirty_bit == DIRTY_BIT_SETTING)
        image->dirty_bit = DIRTY_BIT_SET;
    lost_count(image, &lost);
    error_set(err, -result, "'%s': cannot write its %s: %s", image->file->name,
              lost.clusters > 0 || lost.error < 0 ? "tables" : "refcounts", strerror(-result));
    append_lost(image, &lost, err);
    if (synced < 0)
        error_append(err, "; the host could not make the rest durable (%s), at most %llu bytes",
                     strerror(-synced), (unsigned long long)sync_bytes_at_stake(image));
    if (image->dirty_bit == DIRTY_BIT_SET)
        error_append(err, "; it stays marked as not cleanly closed, until it is served again with "
                          "room on the host");
    else
        free_leaks(image, err);
    return result;
}

// A barrier or a table write failed, or the image is corrupt: the state on disk is unknown since
// then.
static int end_unknown(struct image *image, int result, struct error *err)
{
    uint64_t bytes = sync_bytes_at_stake(image);

    mark_dirty(image);
    (void)file_do_blocking(image->file, FILE_DATASYNC, 0, 0);
    error_set(err, -result, "'%s': an earlier error left it as after a crash", image->file->name);
    if (bytes > 0)
        error_append(err,
                     "; LOST, perhaps: at most %llu bytes that were written or discarded since the "
                     "last flush that succeeded",
                     (unsigned long long)bytes);
    else
        error_append(err, "; nothing that was written is lost");
    error_append(err, "; run 'lazycow check'");
    return result;
}

// ---- The end

uint64_t image_bytes_at_stake(const struct image *image)
{
    return image->format == IMAGE_FORMAT_QCOW2 ? sync_bytes_at_stake(image) : 0;
}

static int make_clean(struct image *image)
{
    struct finish finish = {0};

    image->sync->clean_final = true;
    if (image_needs_clean(image)) {
        image_clean(image, finish_ended, &finish);
        while (!finish.ended)
            run_some(image);
    }
    return finish.result;
}

int image_finish(struct image *image, struct error *err)
{
    int result = 0;

    if (image->read_only || image->format != IMAGE_FORMAT_QCOW2)
        return 0;
    while (image->recovery->running || image->corrupt->busy)
        run_some(image);
    if (image->latched_error == 0)
        result = make_clean(image);
    while (image->syncs.state != SYNC_QUEUE_IDLE)
        run_some(image);
    if (image->latched_error < 0)
        return end_unknown(image, image->latched_error, err);
    if (result < 0 && result != -EBUSY)
        return end_without_room(image, result, err);
    int fitted = image->alloc->taken ? fit_file(image) : 0;
    if (!recover_complete(image))
        return error_set(err, EUCLEAN,
                         "'%s': its tables are damaged or cannot be read, so it stays marked as "
                         "not cleanly closed; run 'lazycow check -r all'",
                         image->file->name);
    if (result < 0)
        return end_without_room(image, result, err);
    if (fitted < 0)
        return error_set(err, -fitted,
                         "'%s': cannot cut the file behind its last cluster: %s; nothing that was "
                         "written is lost",
                         image->file->name, strerror(-fitted));
    return 0;
}
