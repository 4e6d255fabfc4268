// SPDX-License-Identifier: Apache-2.0
#include "qcow2/walk/scan.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2/base/container.h"

// For files that are read past the host's page cache.
#define BUFFER_ALIGNMENT 4096u

static void slot_done(struct file_io *io);

static bool in_hole(struct file *file, const struct scan_range *range)
{
    uint64_t length = 0;

    if (file->ops->extent == NULL)
        return false;
    int64_t size = file_size(file);
    if (size < 0)
        return false;
    if (range->offset >= (uint64_t)size)
        return true; // past the end, which reads as zeros
    return file->ops->extent(file, range->offset, &length) == FILE_EXTENT_HOLE &&
           (length >= range->length || range->offset + length >= (uint64_t)size);
}

static void fail(struct scan *scan, int result)
{
    if (scan->result == 0)
        scan->result = result;
    scan->ended = true;
}

// Submits reads until all slots are in use, there is nothing more to read, or it is the turn of
// others. The end of a read goes on here; where none is in flight a task does.
static void fill(struct scan *scan)
{
    unsigned holes = 0;

    while (!scan->ended && scan->count < SCAN_SLOTS) {
        struct scan_slot *slot = &scan->slots[(scan->first + scan->count) % SCAN_SLOTS];

        if (slot->buf == NULL)
            slot->buf = aligned_alloc(BUFFER_ALIGNMENT, SCAN_RANGE_MAX);
        if (slot->buf == NULL) {
            fail(scan, -ENOMEM);
            return;
        }
        if (!scan->next(scan->context, &slot->range)) {
            scan->ended = true;
            return;
        }
        if (in_hole(scan->file, &slot->range)) {
            if (++holes < SCAN_HOLES_A_TURN)
                continue;
            if (scan->count == 0)
                runq_post(scan->file->runq, &scan->task);
            return;
        }
        slot->scan = scan;
        slot->ready = false;
        slot->iov = (struct iovec){.iov_base = slot->buf, .iov_len = slot->range.length};
        slot->io = (struct file_io){.kind = FILE_READ,
                                    .offset = slot->range.offset,
                                    .length = slot->range.length,
                                    .iov = &slot->iov,
                                    .iovcnt = 1,
                                    .done = slot_done};
        scan->count++;
        file_submit(scan->file, &slot->io);
    }
}

// Hands over what has arrived, refills, and finishes when all is done.
static void pump(struct scan *scan)
{
    while (scan->count > 0 && scan->slots[scan->first].ready) {
        struct scan_slot *slot = &scan->slots[scan->first];

        if (scan->result == 0 && slot->io.result < 0)
            fail(scan, slot->io.result);
        if (scan->result == 0) {
            int ret = scan->take(scan->context, &slot->range, slot->buf);
            if (ret < 0)
                fail(scan, ret);
        }
        scan->first = (scan->first + 1) % SCAN_SLOTS;
        scan->count--;
        fill(scan);
    }
    if (scan->count > 0 || !scan->ended)
        return;
    for (size_t i = 0; i < SCAN_SLOTS; i++)
        free(scan->slots[i].buf);
    scan->done(scan->context, scan->result);
}

static void slot_done(struct file_io *io)
{
    struct scan_slot *slot = container_of(io, struct scan_slot, io);

    slot->ready = true;
    pump(slot->scan);
}

static void go_on(struct task *task)
{
    struct scan *scan = container_of(task, struct scan, task);

    fill(scan);
    pump(scan);
}

void scan_start(struct scan *scan)
{
    for (size_t i = 0; i < SCAN_SLOTS; i++)
        scan->slots[i].buf = NULL;
    scan->first = 0;
    scan->count = 0;
    scan->ended = false;
    scan->result = 0;
    scan->task = (struct task){.run = go_on};
    runq_post(scan->file->runq, &scan->task);
}
