// SPDX-License-Identifier: Apache-2.0
// cache.h: keeps a bounded number of L2 slices in memory. A slice is one piece of an L2 table
// (piece_bits of geometry.h), aligned in the file. Only sync.c writes slices back.
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

// Most dirty slices. All are copied when a sync begins: this bounds the copies (4 MiB) and the
// changes that a crash may lose.
#define CACHE_DIRTY_MAX 1024
// A change needs one slice to change and one to look at; with fewer the engine cannot progress.
#define CACHE_SLICES_MIN 2

//   LOADING ──> CLEAN ──a change──> DIRTY ──a sync begins──> WRITING ──> CLEAN; on error DIRTY
//                                     ^                         │
//                                     │                      a change
//                                     │                         v
//                                     └──────────────── WRITING_DIRTY
enum slice_state {
    SLICE_LOADING,
    SLICE_CLEAN,
    SLICE_DIRTY,
    // A sync is writing a copy. The slice stays in memory until the write ends.
    SLICE_WRITING,
    // A sync is writing a copy, and the slice has changed since the copy was taken.
    SLICE_WRITING_DIRTY,
};

struct slice {
    enum slice_state state;
    // In the file; a multiple of the piece size.
    uint64_t offset;
    uint64_t *entries; // big-endian, as on disk
    // Looked at since the clock hand last passed.
    bool referenced;
    struct waitq waiters; // for loading to end
    struct image *image;
    struct file_io io;
    struct iovec iov;
    LIST_ENTRY(slice) hash_link;
    TAILQ_ENTRY(slice) clock_link;
    TAILQ_ENTRY(slice) dirty_link;
};

static inline bool slice_dirty(const struct slice *slice)
{
    return slice->state == SLICE_DIRTY || slice->state == SLICE_WRITING_DIRTY;
}

// Bytes of the blocks from which slice contents are cut. A malloc of each aligned slice would take
// twice the memory.
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
    // The first slice is the next candidate for eviction.
    TAILQ_HEAD(, slice) clock;
    TAILQ_HEAD(, slice) dirty; // in the order in which they became dirty
    size_t count;
    size_t max;
    size_t dirty_count;
    size_t writing_count;
    // Most dirty and writing slices: half of all, so that reads always find room.
    size_t dirty_max;
    struct waitq room;        // ops that found every slice busy
    struct waitq change_room; // ops that found too many dirty slices
};

// bytes: memory for slice contents. Returns 0 or -ENOMEM.
int cache_init(struct cache *cache, size_t bytes, size_t slice_bytes);
// No slice may be loading.
void cache_free(struct cache *cache);

// Returns 0 and the slice at offset of the image's file, valid until the op returns to the run
// queue; OP_PARKED when the op has to wait for it and plan again; or a negative errno.
int cache_get(struct op *op, struct image *image, uint64_t offset, struct slice **out);

// Returns as cache_get, for a slice of the op's image that is about to change: there is room for
// one more dirty slice.
int cache_get_for_change(struct op *op, uint64_t offset, struct slice **out);
// Called after each change of a slice.
void cache_mark_dirty(struct cache *cache, struct slice *slice);

// For sync.c: the copy of a dirty slice is taken; the write of the copy has ended (failed: the
// slice is dirty again).
void cache_write_begins(struct cache *cache, struct slice *slice);
void cache_write_ended(struct cache *cache, struct slice *slice, bool failed);

// Returns the slice at offset if it is in memory, else NULL.
const struct slice *cache_peek(struct cache *cache, uint64_t offset, unsigned piece_bits);
// Returns true when the slice at offset is in memory, so that cache_get would not wait.
bool cache_has(struct cache *cache, uint64_t offset, unsigned piece_bits);

#endif
