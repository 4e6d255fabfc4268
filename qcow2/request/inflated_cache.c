// SPDX-License-Identifier: Apache-2.0
#include "qcow2/request/inflated_cache.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/container.h"
#include "qcow2/base/epoch.h"
#include "qcow2/base/file.h"
#include "qcow2/base/offload.h"
#include "qcow2/base/op.h"
#include "qcow2/base/runq.h"
#include "qcow2/base/waitq.h"
#include "qcow2/codec/inflate.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/mapping/map.h"

void inflated_cache_init(struct inflated_cache *cache)
{
    *cache = (struct inflated_cache){0};
    waitq_init(&cache->room, "an inflated cluster to be free");
}

void inflated_cache_free(struct inflated_cache *cache)
{
    assert(cache->loading == 0);
    for (size_t i = 0; i < cache->count; i++) {
        free(cache->kept[i].bytes);
        free(cache->kept[i].packed);
    }
    free(cache->kept);
    inflated_cache_init(cache);
}

static bool is_loading(const struct inflated *entry)
{
    return entry->state == INFLATED_READING || entry->state == INFLATED_INFLATING;
}

// ---- Loading

static struct inflated *entry_of_job(struct offload_job *job)
{
    return container_of(job, struct inflated, job);
}

// Runs on another thread.
static void inflate_work(struct offload_job *job)
{
    struct inflated *entry = entry_of_job(job);

    entry->result =
        inflate_cluster(entry->image->header.compression_type, entry->packed, entry->host_length,
                        entry->bytes, entry->image->geometry.cluster_size);
}

static void end_load(struct inflated *entry, int result)
{
    struct image *image = entry->image;

    assert(is_loading(entry));
    if (result < 0)
        image_log(image, "cannot read the compressed cluster at offset %llu: %s",
                  (unsigned long long)entry->host_offset, strerror(-result));
    free(entry->packed);
    entry->packed = NULL;
    entry->state = result < 0 ? INFLATED_EMPTY : INFLATED_READY;
    image->inflated->loading--;
    waitq_wake(&entry->waiters, result);
    waitq_wake(&image->inflated->room, 0);
}

static void inflate_ended(struct task *task)
{
    struct inflated *entry = entry_of_job(container_of(task, struct offload_job, task));

    end_load(entry, entry->result);
}

static void read_ended(struct file_io *io)
{
    struct inflated *entry = container_of(io, struct inflated, io);
    struct image *image = entry->image;

    epoch_leave(&entry->reading);
    if (io->result < 0) {
        end_load(entry, io->result);
        return;
    }
    entry->state = INFLATED_INFLATING;
    entry->job = (struct offload_job){.work = inflate_work, .task = {.run = inflate_ended}};
    if (image->host.offload) {
        image->host.offload(image->host.context, &entry->job);
    } else {
        inflate_work(&entry->job);
        runq_post(image->runq, &entry->job.task);
    }
}

static int inflated_cache_start_load(struct image *image, struct inflated *entry,
                                     const struct mapping *m)
{
    assert(!is_loading(entry));
    // Zeroed, so that a decoder that leaves bytes out, against its contract, reveals no heap
    // memory.
    if (!entry->bytes && !(entry->bytes = calloc(1, image->geometry.cluster_size)))
        return -ENOMEM;
    if (posix_memalign((void **)&entry->packed, 4096, m->host_length) != 0) {
        entry->packed = NULL;
        return -ENOMEM;
    }
    entry->host_offset = m->host_offset;
    entry->host_length = m->host_length;
    entry->state = INFLATED_READING;
    image->inflated->loading++;
    entry->iov = (struct iovec){.iov_base = entry->packed, .iov_len = m->host_length};
    entry->io = (struct file_io){.kind = FILE_READ,
                                 .offset = m->host_offset,
                                 .length = m->host_length,
                                 .iov = &entry->iov,
                                 .iovcnt = 1,
                                 .done = read_ended};
    // The mapping was looked up in this turn. The entry keeps the host clusters in use; the ops
    // that wait for the load hold nothing.
    epoch_enter(&image->grace.plans, &entry->reading);
    file_submit(image->file, &entry->io);
    return 0;
}

// ---- Lookup

static int make_room(struct image *image)
{
    struct inflated_cache *cache = image->inflated;
    size_t count = INFLATED_KEPT_BYTES >> image->geometry.cluster_bits;

    if (cache->kept)
        return 0;
    if (count < INFLATED_KEPT_MIN)
        count = INFLATED_KEPT_MIN;
    if (count > INFLATED_KEPT_MAX)
        count = INFLATED_KEPT_MAX;
    cache->kept = calloc(count, sizeof(*cache->kept));
    if (!cache->kept)
        return -ENOMEM;
    cache->count = count;
    for (size_t i = 0; i < count; i++) {
        cache->kept[i].image = image;
        waitq_init(&cache->kept[i].waiters, "a compressed cluster to be inflated");
    }
    return 0;
}

// Returns the entry that was last asked for longest ago; NULL when all are loading.
static struct inflated *oldest(struct inflated_cache *cache)
{
    struct inflated *best = NULL;

    for (size_t i = 0; i < cache->count; i++) {
        struct inflated *entry = &cache->kept[i];

        if (entry->state == INFLATED_EMPTY)
            return entry;
        if (entry->state == INFLATED_READY && (!best || entry->used < best->used))
            best = entry;
    }
    return best;
}

static struct inflated *inflated_cache_find(struct inflated_cache *cache, const struct mapping *m)
{
    for (size_t i = 0; i < cache->count; i++) {
        struct inflated *entry = &cache->kept[i];

        if (entry->state != INFLATED_EMPTY && entry->host_offset == m->host_offset &&
            entry->host_length == m->host_length)
            return entry;
    }
    return NULL;
}

void inflated_cache_prefetch(struct image *image, const struct mapping *m)
{
    struct inflated_cache *cache = image->inflated;

    if (make_room(image) < 0 || cache->loading >= INFLATED_AHEAD ||
        cache->loading >= cache->count / 2 || inflated_cache_find(cache, m))
        return;

    struct inflated *entry = oldest(cache);
    if (entry) {
        entry->used = ++cache->lookups;
        inflated_cache_start_load(image, entry, m);
    }
}

int inflated_cache_get(struct op *op, struct image *image, const struct mapping *m,
                       const unsigned char **bytes)
{
    struct inflated_cache *cache = image->inflated;
    int result = make_room(image);

    if (result < 0)
        return result;

    struct inflated *entry = inflated_cache_find(cache, m);
    if (!entry) {
        entry = oldest(cache);
        if (!entry)
            return op_park(op, &cache->room);
        result = inflated_cache_start_load(image, entry, m);
        if (result < 0)
            return result;
    }
    entry->used = ++cache->lookups;
    if (is_loading(entry))
        return op_park(op, &entry->waiters);
    assert(entry->state == INFLATED_READY);
    *bytes = entry->bytes;
    return 0;
}
