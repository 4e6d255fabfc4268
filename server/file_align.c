// SPDX-License-Identifier: Apache-2.0
// A request is an align_request from submit to done. Its life:
//
//   submit ─► ordered ─► (all earlier conflicting changes ended) ─► begin
//   begin ──► PASS                                                      ─► finish
//        └──► (room for a bounce buffer) ─► per piece:
//               read:   READ ─► copy out
//               write:  [HEAD] ─► [TAIL] ─► copy in ─► WRITE            ─► finish
//
// HEAD and TAIL read the first and the last block of a piece that covers only part of them.
// Everything runs on the thread of the run queue.
#include "server/file_align.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

// Size of a bounce buffer: large enough that a request of this size keeps a disk busy.
#define BOUNCE_BYTES_MAX (1u << 20)
// Size of all bounce buffers of a file: 16 large requests keep any disk busy. Further requests
// wait.
#define BOUNCE_TOTAL_MAX (16u << 20)

enum align_state {
    ALIGN_WAITING, // for earlier changes, or for room
    ALIGN_PASS,
    ALIGN_READ,
    ALIGN_HEAD,
    ALIGN_TAIL,
    ALIGN_WRITE,
};

struct align_request {
    struct file_io child; // first member
    struct file_io *parent;
    enum align_state state;

    // Order among changes.
    TAILQ_ENTRY(align_request) order_link;
    // The blocks touched, as bytes: [begin, end), multiples of the alignment.
    uint64_t begin;
    uint64_t end;
    // The request changes the file.
    bool ordered;
    // The request depends on bytes around its range.
    bool exclusive;
    // Number of earlier conflicting changes that have not ended.
    unsigned blockers;

    // Bouncing.
    STAILQ_ENTRY(align_request) ready_link; // in the list of ready or of bounce-waiting requests
    char *bounce;
    size_t bounce_size;
    bool reserved; // bounce_size is counted in bounce_total
    // Aligned range of the current piece.
    uint64_t piece_begin;
    uint64_t piece_end;
    struct iovec iov;
};

TAILQ_HEAD(order_list, align_request);
STAILQ_HEAD(ready_list, align_request);

struct align_file {
    struct file file; // first member
    struct file *lower;
    size_t alignment;
    size_t memory_alignment;
    // Changes in flight or waiting, in order of arrival.
    struct order_list changes;
    // Number of exclusive changes.
    unsigned exclusive_count;
    // Bytes of all bounce buffers.
    size_t bounce_total;
    struct ready_list bounce_waiting;
    unsigned in_flight;
};

static struct align_file *align_file_of(const struct align_request *r)
{
    return (struct align_file *)r->parent->file;
}

static void file_align_begin(struct align_request *r);
static void step(struct file_io *child);

static bool conflict(const struct align_request *a, const struct align_request *b)
{
    return (a->exclusive || b->exclusive) && a->begin < b->end && b->begin < a->end;
}

// Enters a change into the order and counts the earlier changes that block it.
static void order(struct align_file *f, struct align_request *r)
{
    struct align_request *earlier;

    if (r->exclusive || f->exclusive_count > 0) {
        TAILQ_FOREACH (earlier, &f->changes, order_link)
            r->blockers += conflict(earlier, r);
    }
    TAILQ_INSERT_TAIL(&f->changes, r, order_link);
    f->exclusive_count += r->exclusive;
}

// Removes an ended change, and moves requests that it was the last to block to ready.
static void unorder(struct align_file *f, struct align_request *r, struct ready_list *ready)
{
    if (r->exclusive || f->exclusive_count > 0) {
        struct align_request *later = r;

        while ((later = TAILQ_NEXT(later, order_link)) != NULL) {
            if (conflict(r, later) && --later->blockers == 0)
                STAILQ_INSERT_TAIL(ready, later, ready_link);
        }
    }
    TAILQ_REMOVE(&f->changes, r, order_link);
    f->exclusive_count -= r->exclusive;
}

static bool reserve_bounce(struct align_file *f, struct align_request *r)
{
    if (f->bounce_total != 0 && f->bounce_total + r->bounce_size > BOUNCE_TOTAL_MAX)
        return false;
    f->bounce_total += r->bounce_size;
    r->reserved = true;
    return true;
}

// Returns the room of the bounce buffer. Waiting requests that fit now move to ready, in order of
// arrival.
static void release_bounce(struct align_file *f, struct align_request *r, struct ready_list *ready)
{
    struct align_request *waiting;

    if (!r->reserved)
        return;
    free(r->bounce);
    f->bounce_total -= r->bounce_size;
    while ((waiting = STAILQ_FIRST(&f->bounce_waiting)) != NULL && reserve_bounce(f, waiting)) {
        STAILQ_REMOVE_HEAD(&f->bounce_waiting, ready_link);
        STAILQ_INSERT_TAIL(ready, waiting, ready_link);
    }
}

// Frees the request, answers its parent, and begins the requests that waited for it.
static void file_align_finish(struct align_request *r, int result)
{
    struct align_file *f = align_file_of(r);
    struct ready_list ready = STAILQ_HEAD_INITIALIZER(ready);
    struct file_io *parent = r->parent;
    struct align_request *next;

    release_bounce(f, r, &ready);
    if (r->ordered)
        unorder(f, r, &ready);
    free(r);
    f->in_flight--;
    file_io_complete(parent, result);

    while ((next = STAILQ_FIRST(&ready)) != NULL) {
        STAILQ_REMOVE_HEAD(&ready, ready_link);
        file_align_begin(next);
    }
}

static void submit_child(struct align_request *r, enum align_state state, enum file_io_kind kind,
                         uint64_t offset, uint64_t length)
{
    r->state = state;
    r->iov = (struct iovec){.iov_base = r->bounce + (offset - r->piece_begin), .iov_len = length};
    r->child = (struct file_io){.kind = kind,
                                .offset = offset,
                                .length = length,
                                .iov = &r->iov,
                                .iovcnt = 1,
                                .done = step};
    file_submit(align_file_of(r)->lower, &r->child);
}

static void pass(struct align_request *r)
{
    const struct file_io *parent = r->parent;

    r->state = ALIGN_PASS;
    r->child = (struct file_io){
        .kind = parent->kind,
        .offset = parent->offset,
        .length = parent->length,
        .iov = parent->iov,
        .iovcnt = parent->iovcnt,
        .extents = parent->extents,
        .extent_max = parent->extent_max,
        .hole_min = parent->hole_min,
        .done = step,
    };
    file_submit(align_file_of(r)->lower, &r->child);
}

// Returns the begin of the parent's bytes in the current piece.
static uint64_t part_begin(const struct align_request *r)
{
    return r->parent->offset > r->piece_begin ? r->parent->offset : r->piece_begin;
}

static uint64_t file_align_part_end(const struct align_request *r)
{
    uint64_t end = r->parent->offset + r->parent->length;

    return end < r->piece_end ? end : r->piece_end;
}

// Copies the parent's bytes of the piece between its buffers and the bounce buffer.
static void copy_part(struct align_request *r)
{
    uint64_t skip = part_begin(r) - r->parent->offset;
    uint64_t left = file_align_part_end(r) - part_begin(r);
    char *bounce = r->bounce + (part_begin(r) - r->piece_begin);

    for (int i = 0; left > 0; i++) {
        const struct iovec *iov = &r->parent->iov[i];

        if (skip >= iov->iov_len) {
            skip -= iov->iov_len;
            continue;
        }

        char *buffer = (char *)iov->iov_base + skip;
        size_t length = iov->iov_len - skip < left ? iov->iov_len - skip : left;
        if (r->parent->kind == FILE_READ)
            memcpy(buffer, bounce, length);
        else
            memcpy(bounce, buffer, length);
        bounce += length;
        left -= length;
        skip = 0;
    }
}

static void write_piece(struct align_request *r)
{
    copy_part(r);
    submit_child(r, ALIGN_WRITE, FILE_WRITE, r->piece_begin, r->piece_end - r->piece_begin);
}

// Reads the last block of the piece if the write covers only part of it, then writes.
static void tail_or_write(struct align_request *r)
{
    size_t alignment = align_file_of(r)->alignment;
    uint64_t tail = r->piece_end - alignment;
    bool have_it = r->state == ALIGN_HEAD && tail == r->piece_begin;

    if (file_align_part_end(r) < r->piece_end && !have_it)
        submit_child(r, ALIGN_TAIL, FILE_READ, tail, alignment);
    else
        write_piece(r);
}

static void begin_piece(struct align_request *r, uint64_t begin)
{
    r->piece_begin = begin;
    r->piece_end = r->end - begin > r->bounce_size ? begin + r->bounce_size : r->end;
    if (r->parent->kind == FILE_READ) {
        submit_child(r, ALIGN_READ, FILE_READ, begin, r->piece_end - begin);
        return;
    }
    r->state = ALIGN_WAITING;
    if (part_begin(r) > r->piece_begin)
        submit_child(r, ALIGN_HEAD, FILE_READ, begin, align_file_of(r)->alignment);
    else
        tail_or_write(r);
}

static void piece_done(struct align_request *r)
{
    if (r->piece_end == r->end)
        file_align_finish(r, 0);
    else
        begin_piece(r, r->piece_end);
}

static void step(struct file_io *child)
{
    struct align_request *r = (struct align_request *)child;

    if (child->result < 0) {
        file_align_finish(r, child->result);
        return;
    }
    switch (r->state) {
    case ALIGN_PASS:
        r->parent->extent_count = child->extent_count;
        file_align_finish(r, 0);
        return;
    case ALIGN_READ:
        copy_part(r);
        piece_done(r);
        return;
    case ALIGN_HEAD:
        tail_or_write(r);
        return;
    case ALIGN_TAIL:
        write_piece(r);
        return;
    case ALIGN_WRITE:
        piece_done(r);
        return;
    case ALIGN_WAITING:
        break;
    }
    abort();
}

static bool is_aligned(const struct align_file *f, const struct file_io *io)
{
    if ((io->offset | io->length) % f->alignment != 0)
        return false;
    for (int i = 0; i < io->iovcnt; i++) {
        if ((uintptr_t)io->iov[i].iov_base % f->memory_alignment != 0 ||
            io->iov[i].iov_len % f->alignment != 0)
            return false;
    }
    return true;
}

// Begins a request that no earlier change blocks any more, or that has got its bounce buffer.
static void file_align_begin(struct align_request *r)
{
    struct align_file *f = align_file_of(r);

    if ((r->parent->kind != FILE_READ && r->parent->kind != FILE_WRITE) ||
        is_aligned(f, r->parent)) {
        pass(r);
        return;
    }
    if (!r->reserved) {
        uint64_t size = r->end - r->begin;

        r->bounce_size = size < BOUNCE_BYTES_MAX ? size : BOUNCE_BYTES_MAX;
        if (!STAILQ_EMPTY(&f->bounce_waiting) || !reserve_bounce(f, r)) {
            STAILQ_INSERT_TAIL(&f->bounce_waiting, r, ready_link);
            return;
        }
    }
    void *bounce;
    if (posix_memalign(&bounce, FILE_ALIGN_MEMORY_MAX, r->bounce_size) != 0) {
        file_align_finish(r, -ENOMEM);
        return;
    }
    r->bounce = bounce;
    begin_piece(r, r->begin);
}

// Finds the blocks that the request touches, and how it is ordered among the changes.
static void classify(const struct align_file *f, struct align_request *r)
{
    const struct file_io *io = r->parent;
    uint64_t mask = f->alignment - 1;
    bool partial = ((io->offset | io->length) & mask) != 0;

    r->begin = io->offset & ~mask;
    r->end = (io->offset + io->length + mask) & ~mask;
    switch (io->kind) {
    case FILE_READ:
    case FILE_DATASYNC:
    case FILE_EXTENTS:
        return;
    case FILE_WRITE:
    case FILE_ZERO:
    case FILE_PUNCH:
    case FILE_ALLOCATE:
        r->ordered = true;
        r->exclusive = partial;
        return;
    case FILE_TRUNCATE:
        r->ordered = true;
        r->exclusive = true;
        r->end = UINT64_MAX;
        return;
    }
    abort();
}

static void align_submit(struct file *file, struct file_io *io)
{
    struct align_file *f = (struct align_file *)file;

    if (io->length == 0 && io->kind != FILE_DATASYNC && io->kind != FILE_TRUNCATE) {
        file_io_complete(io, 0);
        return;
    }
    if (io->offset + io->length > INT64_MAX - f->alignment) {
        file_io_complete(io, -EFBIG);
        return;
    }

    struct align_request *r = calloc(1, sizeof(*r));
    if (r == NULL) {
        file_io_complete(io, -ENOMEM);
        return;
    }
    r->parent = io;
    classify(f, r);
    f->in_flight++;
    if (r->ordered)
        order(f, r);
    if (r->blockers == 0)
        file_align_begin(r);
}

static void align_wait(struct file *file)
{
    struct file *lower = ((struct align_file *)file)->lower;

    lower->ops->wait(lower);
}

static int64_t align_size(struct file *file)
{
    return file_size(((struct align_file *)file)->lower);
}

static void align_close(struct file *file)
{
    struct align_file *f = (struct align_file *)file;

    assert(f->in_flight == 0);
    file_close(f->lower);
    free(f);
}

static const struct file_ops align_ops = {
    .submit = align_submit,
    .wait = align_wait,
    .size = align_size,
    .close = align_close,
};

static bool file_align_power_of_two(size_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

int file_align_new(struct file *lower, size_t alignment, size_t memory_alignment, struct file **out)
{
    if (!file_align_power_of_two(alignment) || alignment > FILE_ALIGN_MAX ||
        !file_align_power_of_two(memory_alignment) || memory_alignment > FILE_ALIGN_MEMORY_MAX)
        return -EINVAL;

    struct align_file *f = calloc(1, sizeof(*f));
    if (f == NULL)
        return -ENOMEM;
    // The file has the name, run queue and flags of the lower one.
    f->file = *lower;
    f->file.ops = &align_ops;
    f->lower = lower;
    f->alignment = alignment;
    f->memory_alignment = memory_alignment;
    TAILQ_INIT(&f->changes);
    STAILQ_INIT(&f->bounce_waiting);
    *out = &f->file;
    return 0;
}
