// SPDX-License-Identifier: Apache-2.0
// recover.h: counts the refcounts of an image anew from its tables, in one pass while the image is
// served. This happens to an image that was not closed cleanly and is opened for writing, and to
// one that gives up its bitmaps. Reads and writes in place go on; an op that changes the mapping
// waits for the end of the pass.
#ifndef LAZYCOW_QCOW2_DURABLE_RECOVER_H
#define LAZYCOW_QCOW2_DURABLE_RECOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/walk/walk.h"

struct image;
struct op;

// Faults of one image that the log describes; further ones are counted.
#define RECOVER_FAULTS_TOLD 10
// Fewest L2 tables for which the log announces a pass. Fewer tables (16 MiB at the most common
// cluster size) are counted before the line is read.
#define RECOVER_TABLES_TOLD 256

// Pieces of refcount blocks that are claimed and marked in one turn, some 20 ns each.
#define RECOVER_PIECES_A_TURN 8192

struct recovery {
    bool running;
    // The pass failed with this error, so the mapping cannot be changed.
    int error;
    uint64_t faults; // found in the tables
    // Of the faults: those that may hide references to any cluster.
    uint64_t hidden;
    uint64_t end;          // one past the highest referenced cluster
    uint64_t told_percent; // progress that was logged
    struct walk walk;
    // Internal. Runs the states after the walk.
    struct op op;
    // Page of refcounts whose old block is claimed next.
    uint64_t next_page;
    struct waitq waiters;
};

// Begins the pass, once bitmaps are out of the header.
void recover_start(struct image *image);
// For sync.c. result 0: the header has no bitmaps any more, so all clusters are counted anew; else
// the bitmaps are still there.
void recover_without_bitmaps(struct image *image, int result);

// Returns 0 when the mapping may be changed, OP_PARKED (plan again), or the error that forbids
// changes.
int recover_wait(struct op *op);
bool recover_done(const struct image *image);
// Returns true when the counts are complete: the pass reached its end, and no fault hides
// references.
bool recover_complete(const struct image *image);

#endif
