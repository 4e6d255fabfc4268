// SPDX-License-Identifier: Apache-2.0
// engine.h: an image on a scripted file (scripted_file.h), the requests of a test, and the order in
// which the engine submits its I/O.
//
//   engine_begin(&e, &engine_large);
//   engine_start(&e, &write, OP_WRITE, OP_FUA, 0, 4096);
//   scripted_file_end(e.disk, engine_reach(&e, "l2"), -ENOSPC);   // the first L2 write fails
//   engine_run(&e);
//   assert_string_equal(e.order, "reserve. data. header. barrier. l2. l1.");
#ifndef LAZYCOW_TESTS_UNIT_ENGINE_H
#define LAZYCOW_TESTS_UNIT_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/core/image_state.h"
#include "qcow2/image.h"
#include "tests/unit/scripted_file.h"

#define ENGINE_ORDER_MAX 4096

struct engine {
    struct scripted_file *disk;
    struct image *image;
    // Requests submitted since engine_watch(), by name: header, l1, l2, block, table (of
    // refcounts), data, barrier, cut, punch, reserve, zero, extents; reads begin with "read-". A
    // dot follows when the request has ended: "data. barrier." means that the data's write had
    // ended when the barrier was submitted, "data barrier" that it had not.
    char order[ENGINE_ORDER_MAX];
};

// A request of a test.
struct request {
    struct op op;
    unsigned done; // how often it was called back
};

// 64 MiB in clusters of 64 KiB, with lazy refcounts: one L2 table, whose first two slices map the
// whole disk.
extern const struct create_options engine_large;
// 4 MiB in clusters of 512 bytes, without lazy refcounts: a slice is an L2 table and maps 32 KiB.
extern const struct create_options engine_small;

// Creates an image and opens it. Discarded clusters are punched.
void engine_begin(struct engine *e, const struct create_options *create);
// Creates and opens an image with other options.
void engine_begin_with(struct engine *e, const struct create_options *create,
                       const struct image_options *options);
// Opens the image in e->disk, which the caller has created.
void engine_open(struct engine *e, const struct image_options *options);
// Finishes the image, which must succeed, checks that it has no leak or corruption, and frees
// everything.
void engine_end(struct engine *e);
// The same, but the file stays.
void engine_end_image(struct engine *e);
// Frees everything; the image may be finished or not.
void engine_free(struct engine *e);
// Closes and opens the image without finishing it, as after a crash behind the last request.
void engine_crash(struct engine *e, const struct image_options *options);
// Crashes the image like engine_crash(); recovery has not begun to run.
void engine_crash_only(struct engine *e, const struct image_options *options);
// Finishes the image, gives it a snapshot of its present disk, and opens it again.
void engine_snapshot(struct engine *e);
// Gives a finished image with clusters of 64 KiB a bitmap, named "b": its directory and, in the
// last cluster of the file, its table with one entry.
void engine_add_bitmap(struct engine *e);
// Returns the number of faults that lazycow check finds, with leaks.
uint64_t engine_faults(struct engine *e);

// Runs a request from start to done. Returns its result.
int engine_write(struct engine *e, uint64_t offset, uint64_t length, int byte);
int engine_do(struct engine *e, enum op_kind kind, unsigned flags, uint64_t offset,
              uint64_t length);
int engine_flush(struct engine *e);
// Asserts that every byte of the range reads as byte.
void engine_expect(struct engine *e, uint64_t offset, uint64_t length, int byte);

// Starts a request. All writes share one buffer for their payload, and all reads another one.
void engine_fill(int byte);
void engine_start(struct engine *e, struct request *r, enum op_kind kind, unsigned flags,
                  uint64_t offset, uint64_t length);
// Runs everything to its end.
void engine_run(struct engine *e);
// Runs everything but requests of this name, until nothing else is left.
void engine_hold(struct engine *e, const char *name);
// Runs until a request of this name is submitted, and returns its index in the file's queue. Fails
// the test if none is submitted.
size_t engine_reach(struct engine *e, const char *name);
// Returns true when a request of this name is in flight.
bool engine_in_flight(const struct engine *e, const char *name);

// Forgets the order so far.
void engine_watch(struct engine *e);
// Returns how many requests of this name were submitted since engine_watch().
unsigned engine_count(const struct engine *e, const char *name);

// Return the entry of a guest cluster on disk, and in memory (its slice must be there).
uint64_t engine_disk_entry(const struct engine *e, uint64_t cluster);
uint64_t engine_entry(const struct engine *e, uint64_t cluster);
// Returns the refcount in memory; the page must be known.
uint64_t engine_refcount(const struct engine *e, uint64_t host_offset);
// Returns true when the log has a line with this text.
bool engine_said(const struct engine *e, const char *text);

#endif
