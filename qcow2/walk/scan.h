// SPDX-License-Identifier: Apache-2.0
// scan.h: reads many ranges of a file with several requests in flight and hands them over in order,
// for passes over all the tables of an image. Holes of the file are left out.
#ifndef LAZYCOW_QCOW2_WALK_SCAN_H
#define LAZYCOW_QCOW2_WALK_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "qcow2/base/file.h"

// Largest range, in bytes: long enough for a disk to stream, short enough to handle between two
// requests of a client.
#define SCAN_RANGE_MAX (256u << 10)
// Ranges in flight: what a solid-state disk wants, and 4 MiB of buffers.
#define SCAN_SLOTS 16
// Holes passed over in one turn of the run queue: an image may consist of millions.
#define SCAN_HOLES_A_TURN 64
// Extents of the file that are asked for at a time. Tables lie together, or far apart with data in
// between, of whose holes nobody wants to know.
#define SCAN_EXTENTS 4

struct scan_range {
    uint64_t offset; // bytes
    size_t length;   // bytes, 1..SCAN_RANGE_MAX
    uint64_t tag;    // the owner's
};

struct scan;

struct scan_slot {
    struct scan *scan;
    struct scan_range range;
    struct file_io io;
    struct iovec iov;
    uint8_t *buf;
    bool ready; // read, and waiting for those before it
};

// Caller-owned; lives until done runs.
struct scan {
    // Set by the caller.
    struct file *file;
    void *context;
    // Names the next range; false at the end.
    bool (*next)(void *context, struct scan_range *range);
    // Takes the bytes of a range, in the order of next. A range that lies in a hole of the file is
    // all zeros and is not handed over. Returns 0, or a negative errno that ends the scan.
    int (*take)(void *context, const struct scan_range *range, const uint8_t *bytes);
    // Runs from the run queue when nothing is in flight any more; result is 0 or a negative errno.
    void (*done)(void *context, int result);

    // Private.
    struct task task;
    struct scan_slot slots[SCAN_SLOTS];
    size_t first;            // slot of the oldest range in flight
    size_t count;            // ranges in flight
    struct scan_range range; // of next, to be submitted
    bool held;               // it is there
    bool asking;             // if it lies in a hole
    bool all_data;           // the host cannot tell
    struct file_io ask;      // the last question, and its answer
    struct file_extent extents[SCAN_EXTENTS];
    bool ended; // next has nothing more, or there was an error
    int result;
};

// Starts; done never runs inside.
void scan_start(struct scan *scan);

#endif
