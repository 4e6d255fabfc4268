// SPDX-License-Identifier: Apache-2.0
// guard.h: metadata is never overwritten by something else. Before each write its target is checked
// against where the header, the tables and the snapshots lie (what qemu calls overlap checks).
// Known from the first change on; an image that is only read has no use for it. The tables may be
// millions, and are collected in many turns of the loop:
//
//   NONE ── guard_wait ──> COLLECTING ── the last table ──> READY
//     ^                        │
//     └── no memory, or tables that overlap
#ifndef LAZYCOW_QCOW2_MAPPING_GUARD_H
#define LAZYCOW_QCOW2_MAPPING_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/cluster_set.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"

struct image;

// Entries of the refcount table and the L1 table that are looked at in one turn, about 100 ns each
// where there is a table.
#define GUARD_ENTRIES_A_TURN 4096

enum guard_state { GUARD_NONE, GUARD_COLLECTING, GUARD_READY };

struct guard_range {
    uint64_t first; // host clusters [first, end)
    uint64_t end;
    const char *what;
};

struct guard {
    enum guard_state state;
    struct cluster_set tables;  // L2 tables and refcount blocks
    struct guard_range *ranges; // header, L1 tables, snapshot table: sorted, none touches another
    size_t range_count;
    struct guard_range refcount_table; // moves

    // While COLLECTING.
    struct op op;             // internal
    uint64_t next;            // entry to look at next: of the refcount table, then of the L1 table
    struct cluster_set added; // tables that came meanwhile, and so were checked by who added them
    struct waitq waiters;     // ops that wait for the end
};

void guard_init(struct guard *guard);
void guard_free(struct guard *guard);

// Before a change: waits until all metadata is known. Returns 0, OP_PARKED (plan again), -ENOMEM, or
// -EIO where tables overlap: the image is then marked corrupt.
int guard_wait(struct op *op);

// What metadata there is among the clusters that [offset, offset + length) of the file touches, or
// NULL.
const char *guard_hit(const struct image *image, uint64_t offset, uint64_t length);

// True when writing to [offset, offset + length) of the file, or giving it up, would cost metadata
// that is known. The image is then marked corrupt.
bool guard_refuses(struct image *image, uint64_t offset, uint64_t length);

// An L2 table or a refcount block came or went. Where nothing is collected yet, nothing is noted. A
// table goes only where a change is undone, after guard_wait. guard_add returns 0 or -ENOMEM.
int guard_add(struct image *image, uint64_t host_offset);
void guard_remove(struct image *image, uint64_t host_offset);
// The refcount table lies elsewhere now.
void guard_move_refcount_table(struct image *image, uint64_t first, uint64_t count);

#endif
