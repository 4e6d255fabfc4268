// SPDX-License-Identifier: Apache-2.0
// cache.h: slices of L2 tables in memory, at most so many. A slice is one piece of metadata
// (geometry.h), aligned in the file. Only sync.c writes slices back.
#ifndef LAZYCOW_QCOW2_MAPPING_CACHE_H
#define LAZYCOW_QCOW2_MAPPING_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/file.h"
#include "qcow2/base/waitq.h"

struct image;
struct op;

// Dirty slices are copied when a sync starts; this bounds the copies (4 MiB) and what a crash may
// lose.
#define CACHE_DIRTY_MAX 1024
// One slice that changes and one that is looked at: with fewer the engine cannot move.
#define CACHE_SLICES_MIN 2

struct slice {
    uint64_t offset;   // in the file, a multiple of the piece size
    uint64_t *entries; // big-endian, as on disk
    bool loading;
    bool dirty;
    bool writing;         // a sync is writing a copy; the slice stays until that is done
    bool referenced;      // looked at since the clock hand last passed
    struct waitq waiters; // for loading to end
    struct image *image;
    struct file_io io;
    struct iovec iov;
    LIST_ENTRY(slice) hash_link;
    TAILQ_ENTRY(slice) clock_link;
    TAILQ_ENTRY(slice) dirty_link;
};

// Slices' contents are cut from blocks of this size: what malloc aligns by itself takes twice the
// room.
#define CACHE_BLOCK_BYTES (256u << 10)

struct cache_block {
    SLIST_ENTRY(cache_block) link;
    unsigned char *bytes;
};

struct cache {
    SLIST_HEAD(, cache_block) blocks;
    unsigned char *cut; // rest of the newest block
    size_t cut_bytes;
    TAILQ_HEAD(, slice) spare; // slices that hold nothing
    LIST_HEAD(slice_bucket, slice) * buckets;
    size_t bucket_mask;
    TAILQ_HEAD(, slice) clock; // the first is the next candidate to leave
    TAILQ_HEAD(, slice) dirty; // in the order in which they became dirty
    size_t count;
    size_t max;
    size_t dirty_count;
    size_t writing_count;
    size_t dirty_max;  // of dirty and writing slices: half of all, so that reads always find room
    struct waitq room; // ops that found every slice busy
    struct waitq change_room; // ops that found too many dirty
};

// bytes is the memory for slice contents. Returns 0 or -ENOMEM.
int cache_init(struct cache *cache, size_t bytes, size_t slice_bytes);
// No slice may be loading.
void cache_free(struct cache *cache);

// Returns 0 and the slice at offset of the image's file (valid until the op returns to the run
// queue), OP_PARKED when the op has to wait for it and plan again, or a negative errno.
int cache_get(struct op *op, struct image *image, uint64_t offset, struct slice **out);

// As cache_get, for slices of the op's image that will be changed: there is room for one more dirty
// slice.
int cache_get_for_change(struct op *op, uint64_t offset, struct slice **out);
// After a change.
void cache_mark_dirty(struct cache *cache, struct slice *slice);

// For sync.c: the copy of a dirty slice is taken; its write ended (failed: it is dirty again).
void cache_write_begins(struct cache *cache, struct slice *slice);
void cache_write_ended(struct cache *cache, struct slice *slice, bool failed);

// The slice at offset as it is in memory, or NULL.
const struct slice *cache_peek(struct cache *cache, uint64_t offset, unsigned piece_bits);
// Whether the slice at offset is in memory, so that cache_get would not have to wait.
bool cache_has(struct cache *cache, uint64_t offset, unsigned piece_bits);

#endif
