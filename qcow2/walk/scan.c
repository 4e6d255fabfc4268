// SPDX-License-Identifier: Apache-2.0
#include "qcow2/walk/scan.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2/base/container.h"

// Alignment in bytes of buffers for files that bypass the host's page cache.
#define BUFFER_ALIGNMENT 4096u

static void slot_done(struct file_io *io);

static void go_on(struct task *task);

enum place { PLACE_DATA, PLACE_HOLE, PLACE_UNKNOWN };

// Tells where the range lies, as far as the last answer covers it.
static enum place scan_place_of(const struct scan *scan, const struct scan_range *range)
{
    uint64_t begin = scan->ask.offset;

    if (scan->all_data)
        return PLACE_DATA;
    for (size_t i = 0; i < scan->ask.extent_count && range->offset >= begin; i++) {
        uint64_t end = begin + scan->extents[i].length;

        if (range->offset < end)
            return scan->extents[i].kind == FILE_EXTENT_HOLE && range->offset + range->length <= end
                       ? PLACE_HOLE
                       : PLACE_DATA;
        begin = end;
    }
    return PLACE_UNKNOWN;
}

static void scan_answered(struct file_io *io)
{
    struct scan *scan = container_of(io, struct scan, ask);

    scan->asking = false;
    scan->all_data = io->result < 0;
    // A turn that is posted already will use the answer.
    if (!scan->task.queued)
        go_on(&scan->task);
}

static void scan_ask(struct scan *scan)
{
    scan->asking = true;
    scan->ask = (struct file_io){.kind = FILE_EXTENTS,
                                 .offset = scan->range.offset,
                                 .length = scan->range.length,
                                 .extents = scan->extents,
                                 .extent_max = SCAN_EXTENTS,
                                 .done = scan_answered};
    file_submit(scan->file, &scan->ask);
}

static void read_range(struct scan *scan, struct scan_slot *slot)
{
    slot->scan = scan;
    slot->range = scan->range;
    slot->ready = false;
    slot->iov = (struct iovec){.iov_base = slot->buf, .iov_len = slot->range.length};
    slot->io = (struct file_io){.kind = FILE_READ,
                                .offset = slot->range.offset,
                                .length = slot->range.length,
                                .iov = &slot->iov,
                                .iovcnt = 1,
                                .done = slot_done};
    scan->held = false;
    scan->count++;
    file_submit(scan->file, &slot->io);
}

static void scan_fail(struct scan *scan, int result)
{
    if (scan->result == 0)
        scan->result = result;
    scan->ended = true;
}

// Submits reads until all slots are in use, the end is reached, the next range's place is unknown,
// or other tasks need their turn. The scan continues when a read ends; with none in flight a task
// is posted.
static void scan_fill(struct scan *scan)
{
    unsigned holes = 0;

    while (!scan->ended && !scan->asking && scan->count < SCAN_SLOTS) {
        struct scan_slot *slot = &scan->slots[(scan->first + scan->count) % SCAN_SLOTS];

        if (slot->buf == NULL)
            slot->buf = aligned_alloc(BUFFER_ALIGNMENT, SCAN_RANGE_MAX);
        if (slot->buf == NULL) {
            scan_fail(scan, -ENOMEM);
            return;
        }
        if (!scan->held && !scan->next(scan->context, &scan->range)) {
            scan->ended = true;
            return;
        }
        scan->held = true;
        switch (scan_place_of(scan, &scan->range)) {
        case PLACE_DATA:
            read_range(scan, slot);
            break;
        case PLACE_UNKNOWN:
            scan_ask(scan);
            return;
        case PLACE_HOLE:
            scan->held = false;
            if (++holes < SCAN_HOLES_A_TURN)
                break;
            if (scan->count == 0)
                runq_post(scan->file->runq, &scan->task);
            return;
        }
    }
}

// Hands over one range that has arrived, in order, refills, and finishes when all is done.
static void pump(struct scan *scan)
{
    if (scan->count > 0 && scan->slots[scan->first].ready) {
        struct scan_slot *slot = &scan->slots[scan->first];

        if (scan->result == 0 && slot->io.result < 0)
            scan_fail(scan, slot->io.result);
        if (scan->result == 0) {
            int ret = scan->take(scan->context, &slot->range, slot->buf);
            if (ret < 0)
                scan_fail(scan, ret);
        }
        scan->first = (scan->first + 1) % SCAN_SLOTS;
        scan->count--;
        scan_fill(scan);
        if (scan->count > 0 && scan->slots[scan->first].ready)
            runq_post(scan->file->runq, &scan->task);
    }
    if (scan->count > 0 || scan->asking || !scan->ended)
        return;
    for (size_t i = 0; i < SCAN_SLOTS; i++)
        free(scan->slots[i].buf);
    scan->done(scan->context, scan->result);
}

static void slot_done(struct file_io *io)
{
    struct scan_slot *slot = container_of(io, struct scan_slot, io);

    slot->ready = true;
    // A turn that is posted already handles this range, too.
    if (!slot->scan->task.queued)
        pump(slot->scan);
}

static void go_on(struct task *task)
{
    struct scan *scan = container_of(task, struct scan, task);

    scan_fill(scan);
    pump(scan);
}

void scan_start(struct scan *scan)
{
    for (size_t i = 0; i < SCAN_SLOTS; i++)
        scan->slots[i].buf = NULL;
    scan->first = 0;
    scan->count = 0;
    scan->held = false;
    scan->asking = false;
    scan->all_data = false;
    scan->ask.extent_count = 0;
    scan->ended = false;
    scan->result = 0;
    scan->task = (struct task){.run = go_on};
    runq_post(scan->file->runq, &scan->task);
}
