// SPDX-License-Identifier: Apache-2.0
// scan.h: reads many ranges of a file with several requests in flight and hands them over in order,
// for passes over all tables of an image. Skips holes of the file.
#ifndef LAZYCOW_QCOW2_WALK_SCAN_H
#define LAZYCOW_QCOW2_WALK_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "qcow2/base/file.h"

// Largest range in bytes: long enough for a disk to stream, short enough to be handled between two
// requests of a client.
#define SCAN_RANGE_MAX (256u << 10)
// Ranges in flight: a solid-state disk needs so many, and their buffers take 4 MiB.
#define SCAN_SLOTS 16
// Holes that are skipped in one turn: an image may have millions.
#define SCAN_HOLES_A_TURN 64
// Extents of the file that are asked for at a time. Tables lie together, or far apart with data in
// between whose holes are of no interest.
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
    bool ready; // read; waits for the ranges before it
};

// Owned by the caller; lives until done runs.
struct scan {
    // Set by the caller.
    struct file *file;
    void *context;
    // Sets the next range. Returns false at the end.
    bool (*next)(void *context, struct scan_range *range);
    // Takes the bytes of a range, in the order of next. Not called for a range in a hole of the
    // file, which is all zeros. Returns 0, or a negative errno that ends the scan.
    int (*take)(void *context, const struct scan_range *range, const uint8_t *bytes);
    // Runs from the run queue when no request is in flight any more. result is 0 or a negative
    // errno.
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
    struct file_io ask;      // the last question to the host, and its answer
    struct file_extent extents[SCAN_EXTENTS];
    bool ended; // next has returned false, or there was an error
    int result;
};

// Starts the scan. done never runs inside this call.
void scan_start(struct scan *scan);

#endif
