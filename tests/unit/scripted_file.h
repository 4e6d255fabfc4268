// SPDX-License-Identifier: Apache-2.0
// scripted_file.h: a file in memory whose requests end when the test tells them to, in the test's
// order, with success or an error. With it a test of an engine's module is a few lines.
//
//   struct scripted_file *disk = scripted_file_new();
//   struct image *image = scripted_image_new(disk, &create, &options);
//   op_start(image, &op);                     // the first turn
//   scripted_file_turn(disk);                 // each queued task runs once
//   scripted_file_end(disk, 0, -EIO);         // the oldest request fails
//   scripted_file_run(disk);                  // everything runs until nothing is left
#ifndef LAZYCOW_TESTS_UNIT_SCRIPTED_FILE_H
#define LAZYCOW_TESTS_UNIT_SCRIPTED_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/file.h"
#include "qcow2/image.h"
#include "qcow2/offline/create.h"

// Size of the file; memory is taken for written bytes only.
#define SCRIPTED_BYTES_MAX (4ull << 30)
// More requests at once than any module submits.
#define SCRIPTED_QUEUE_MAX 256
// Lines of the log that are kept.
#define SCRIPTED_LINES_MAX 32

struct scripted_file {
    struct file file;
    struct runq runq; // unused in a backing file
    uint8_t *bytes;   // SCRIPTED_BYTES_MAX; zeros where nothing was written
    uint64_t size;
    int size_error;                            // negative: the size cannot be told
    struct file_io *queue[SCRIPTED_QUEUE_MAX]; // submitted and not ended, the oldest first
    size_t queued;
    // If fail_length is not 0, every request of this kind that touches [fail_offset, fail_offset +
    // fail_length) fails with this error.
    enum file_io_kind fail_kind;
    uint64_t fail_offset, fail_length;
    int fail_error;                       // negative
    unsigned submitted[FILE_EXTENTS + 1]; // by kind, since the start
    // Called when a request is submitted, and when it has ended; may be NULL.
    void (*observe)(void *context, const struct file_io *io, bool ended);
    void *observe_context;
    // Reads that want a loan of the file's bytes get one.
    bool makes_loans;
    unsigned loans;               // loans that were not returned
    unsigned settles;             // how often the image asked to settle loans
    struct scripted_file *behind; // opened for an image that names a backing file
    // Lines of the image's log, the first one first.
    char *lines[SCRIPTED_LINES_MAX];
    size_t line_count;
};

// Returns an empty file; fails the test without memory.
struct scripted_file *scripted_file_new(void);
// Returns a backing file with the run queue of s, which is freed with s.
struct scripted_file *scripted_file_new_behind(struct scripted_file *s);
void scripted_file_free(struct scripted_file *s);

// Ends the request at an index of the queue: result 0 carries it out, a negative errno does not.
void scripted_file_end(struct scripted_file *s, size_t index, int result);
// Runs each task that is in the run queue now once. Returns false when there was none.
bool scripted_file_turn(struct scripted_file *s);
// Runs until the run queue is empty; requests stay in their queue. Returns the number of turns.
size_t scripted_file_turns(struct scripted_file *s);
// Runs tasks and ends requests in order until none is left.
void scripted_file_run(struct scripted_file *s);
// Returns the index of the oldest request of a kind; s->queued if there is none.
size_t scripted_file_find(const struct scripted_file *s, enum file_io_kind kind);

// Creates an image in the file, as lazycow create does, and opens it; scripted_file_run() ends the
// requests for that. The image then owns the file, but image_close() leaves the scripted_file
// alone.
void scripted_file_create(struct scripted_file *s, const struct create_options *create);
struct image *scripted_image_open(struct scripted_file *s, const struct image_options *options);
// The same, but what goes on by itself after opening, such as recovery, has not run yet.
struct image *scripted_image_open_only(struct scripted_file *s,
                                       const struct image_options *options);
struct image *scripted_image_new(struct scripted_file *s, const struct create_options *create,
                                 const struct image_options *options);

// Runs an op from start to done, with everything that it waits for. Returns its result.
int scripted_op(struct scripted_file *s, struct image *image, struct op *op);
int scripted_read(struct scripted_file *s, struct image *image, void *buf, uint64_t offset,
                  uint64_t length);
int scripted_write(struct scripted_file *s, struct image *image, const void *buf, uint64_t offset,
                   uint64_t length);

#endif
