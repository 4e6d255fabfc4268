// SPDX-License-Identifier: Apache-2.0
// recover.h: an image that was not closed cleanly, opened for writing, or one that gives up its bitmaps.
// Its refcounts are counted anew from the tables, in one pass while it is served: reads and writes in
// place go on, whatever changes the mapping waits for the end of the pass.
#ifndef LAZYCOW_QCOW2_DURABLE_RECOVER_H
#define LAZYCOW_QCOW2_DURABLE_RECOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"
#include "qcow2/walk/walk.h"

struct image;
struct op;

// Faults of one image that are told in the log; more are counted.
#define RECOVER_FAULTS_TOLD 10
// With fewer L2 tables (16 MiB of them at the most common cluster size) it is over before it is
// read.
#define RECOVER_TABLES_TOLD 256

// Pieces of refcount blocks that are claimed and marked in one turn of the loop, some 20 ns each.
#define RECOVER_PIECES_A_TURN 8192

struct recovery {
    bool running;
    int error;             // the pass failed: the mapping cannot be changed
    uint64_t faults;       // found in the tables
    uint64_t hidden;       // of them: those that may hide references to any cluster
    uint64_t end;          // one past the highest cluster that is referenced
    uint64_t told_percent; // progress that was logged
    struct walk walk;
    struct op op;       // internal; what comes after the walk
    uint64_t next_page; // of the refcounts, whose old block is to be claimed next
    struct waitq waiters;
};

// Begins the pass, once bitmaps are out of the header.
void recover_start(struct image *image);
// For sync.c: the header has no bitmaps any more (result 0), so that all clusters are to be counted;
// or still has them.
void recover_without_bitmaps(struct image *image, int result);

// Returns 0 when the mapping may be changed, OP_PARKED (plan again), or the error that forbids it.
int recover_wait(struct op *op);
bool recover_done(const struct image *image);
// Whether the counts are all there is: the pass came to its end, and no fault hides references.
bool recover_complete(const struct image *image);

#endif
