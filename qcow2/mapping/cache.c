// SPDX-License-Identifier: Apache-2.0
#include "qcow2/mapping/cache.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "qcow2/base/container.h"
#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"

// Buckets of the hash table: one a slice, but no more than this (512 KiB) to begin with.
#define BUCKETS_MAX 65536

int cache_init(struct cache *cache, size_t bytes, size_t slice_bytes)
{
    size_t buckets = 16;

    cache->max = bytes / slice_bytes;
    if (cache->max < CACHE_SLICES_MIN)
        cache->max = CACHE_SLICES_MIN;
    cache->dirty_max = cache->max / 2 < CACHE_DIRTY_MAX ? cache->max / 2 : CACHE_DIRTY_MAX;
    while (buckets < cache->max && buckets < BUCKETS_MAX)
        buckets *= 2;
    cache->buckets = calloc(buckets, sizeof(*cache->buckets));
    if (!cache->buckets)
        return -ENOMEM;
    cache->bucket_mask = buckets - 1;
    SLIST_INIT(&cache->blocks);
    TAILQ_INIT(&cache->spare);
    TAILQ_INIT(&cache->clock);
    TAILQ_INIT(&cache->dirty);
    waitq_init(&cache->room, "an L2 slice to be free");
    waitq_init(&cache->change_room, "fewer dirty L2 slices");
    return 0;
}

static void free_slices(struct cache *cache)
{
    struct slice *slice;

    TAILQ_CONCAT(&cache->clock, &cache->spare, clock_link);
    while ((slice = TAILQ_FIRST(&cache->clock)) != NULL) {
        TAILQ_REMOVE(&cache->clock, slice, clock_link);
        free(slice);
    }
}

void cache_free(struct cache *cache)
{
    struct cache_block *block;

    if (!cache->buckets)
        return;
    free_slices(cache);
    while ((block = SLIST_FIRST(&cache->blocks)) != NULL) {
        SLIST_REMOVE_HEAD(&cache->blocks, link);
        free(block->bytes);
        free(block);
    }
    free(cache->buckets);
    cache->buckets = NULL;
}

static struct slice_bucket *bucket_of(struct cache *cache, uint64_t offset, unsigned piece_bits)
{
    uint64_t hash = (offset >> piece_bits) * 0x9e3779b97f4a7c15ull;

    return &cache->buckets[(hash >> 32) & cache->bucket_mask];
}

static struct slice *cache_find(struct cache *cache, uint64_t offset, unsigned piece_bits)
{
    struct slice *slice;

    LIST_FOREACH (slice, bucket_of(cache, offset, piece_bits), hash_link) {
        if (slice->offset == offset)
            return slice;
    }
    return NULL;
}

const struct slice *cache_peek(struct cache *cache, uint64_t offset, unsigned piece_bits)
{
    const struct slice *slice = cache_find(cache, offset, piece_bits);

    return slice && slice->state != SLICE_LOADING ? slice : NULL;
}

bool cache_has(struct cache *cache, uint64_t offset, unsigned piece_bits)
{
    return cache_peek(cache, offset, piece_bits) != NULL;
}

// Takes an unused slice out of the hash; NULL when all are busy. The clock hand goes round at most
// twice: once to clear the referenced marks, once to choose.
static struct slice *evict(struct cache *cache)
{
    for (size_t i = 0; i < 2 * cache->count; i++) {
        struct slice *slice = TAILQ_FIRST(&cache->clock);

        TAILQ_REMOVE(&cache->clock, slice, clock_link);
        if (slice->state != SLICE_CLEAN || slice->referenced) {
            slice->referenced = false;
            TAILQ_INSERT_TAIL(&cache->clock, slice, clock_link);
            continue;
        }
        LIST_REMOVE(slice, hash_link);
        cache->count--;
        return slice;
    }
    return NULL;
}

// Returns memory for the entries of a slice, aligned so that O_DIRECT needs no copy; NULL without
// memory.
static uint64_t *cut_entries(struct cache *cache, size_t slice_bytes)
{
    if (cache->cut_bytes < slice_bytes) {
        struct cache_block *block = malloc(sizeof(*block));

        if (!block)
            return NULL;
        if (posix_memalign((void **)&block->bytes, 4096, CACHE_BLOCK_BYTES) != 0) {
            free(block);
            return NULL;
        }
        SLIST_INSERT_HEAD(&cache->blocks, block, link);
        cache->cut = block->bytes;
        cache->cut_bytes = CACHE_BLOCK_BYTES;
    }
    uint64_t *entries = (uint64_t *)(void *)cache->cut;
    cache->cut += slice_bytes;
    cache->cut_bytes -= slice_bytes;
    return entries;
}

static struct slice *new_slice(struct image *image)
{
    struct cache *cache = image->cache;
    struct slice *slice = TAILQ_FIRST(&cache->spare);

    if (slice) {
        TAILQ_REMOVE(&cache->spare, slice, clock_link);
        return slice;
    }
    if (cache->count >= cache->max)
        return evict(cache);
    slice = calloc(1, sizeof(*slice));
    if (!slice)
        return evict(cache);
    slice->entries = cut_entries(cache, image->geometry.piece_bytes);
    if (!slice->entries) {
        free(slice);
        return evict(cache);
    }
    slice->image = image;
    waitq_init(&slice->waiters, "an L2 slice to be read");
    return slice;
}

static void cache_load_ended(struct file_io *io)
{
    struct slice *slice = container_of(io, struct slice, io);
    struct cache *cache = slice->image->cache;

    slice->state = SLICE_CLEAN;
    waitq_wake(&slice->waiters, io->result);
    waitq_wake(&cache->room, 0);
    if (io->result < 0) {
        image_log(slice->image, "cannot read the L2 table at offset %llu: error %d",
                  (unsigned long long)slice->offset, -io->result);
        LIST_REMOVE(slice, hash_link);
        TAILQ_REMOVE(&cache->clock, slice, clock_link);
        cache->count--;
        TAILQ_INSERT_TAIL(&cache->spare, slice, clock_link);
    }
}

static void cache_start_load(struct image *image, struct slice *slice, uint64_t offset)
{
    struct cache *cache = image->cache;

    slice->offset = offset;
    slice->state = SLICE_LOADING;
    slice->referenced = true;
    LIST_INSERT_HEAD(bucket_of(cache, offset, image->geometry.piece_bits), slice, hash_link);
    TAILQ_INSERT_TAIL(&cache->clock, slice, clock_link);
    cache->count++;

    slice->iov = (struct iovec){.iov_base = slice->entries, .iov_len = image->geometry.piece_bytes};
    slice->io = (struct file_io){.kind = FILE_READ,
                                 .offset = offset,
                                 .length = image->geometry.piece_bytes,
                                 .iov = &slice->iov,
                                 .iovcnt = 1,
                                 .done = cache_load_ended};
    file_submit(image->file, &slice->io);
}

int cache_get(struct op *op, struct image *image, uint64_t offset, struct slice **out)
{
    struct cache *cache = image->cache;
    struct slice *slice = cache_find(cache, offset, image->geometry.piece_bits);

    if (slice && slice->state != SLICE_LOADING) {
        slice->referenced = true;
        *out = slice;
        return 0;
    }
    if (!slice) {
        slice = new_slice(image);
        if (!slice && cache->count == 0)
            return -ENOMEM;
        if (!slice) {
            if (cache->dirty_count > 0)
                sync_request(image);
            return op_park(op, &cache->room);
        }
        cache_start_load(image, slice, offset);
    }
    return op_park(op, &slice->waiters);
}

int cache_get_for_change(struct op *op, uint64_t offset, struct slice **out)
{
    struct cache *cache = op->image->cache;
    int result = cache_get(op, op->image, offset, out);

    if (result != 0 || slice_dirty(*out))
        return result;
    if (cache->dirty_count + cache->writing_count < cache->dirty_max)
        return 0;
    sync_request(op->image);
    return op_park(op, &cache->change_room);
}

void cache_mark_dirty(struct cache *cache, struct slice *slice)
{
    assert(slice->state != SLICE_LOADING);
    if (slice_dirty(slice))
        return;
    slice->state = slice->state == SLICE_WRITING ? SLICE_WRITING_DIRTY : SLICE_DIRTY;
    cache->dirty_count++;
    TAILQ_INSERT_TAIL(&cache->dirty, slice, dirty_link);
}

void cache_write_begins(struct cache *cache, struct slice *slice)
{
    assert(slice->state == SLICE_DIRTY);
    slice->state = SLICE_WRITING;
    cache->dirty_count--;
    cache->writing_count++;
    TAILQ_REMOVE(&cache->dirty, slice, dirty_link);
}

void cache_write_ended(struct cache *cache, struct slice *slice, bool failed)
{
    assert(slice->state >= SLICE_WRITING && cache->writing_count > 0);
    cache->writing_count--;
    slice->state = slice->state == SLICE_WRITING ? SLICE_CLEAN : SLICE_DIRTY;
    if (failed)
        cache_mark_dirty(cache, slice);
}
