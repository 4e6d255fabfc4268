// SPDX-License-Identifier: Apache-2.0
// guard.h: keeps data writes off metadata. Before each write its target is compared with the places
// of the header, the tables and the snapshots (QEMU calls these overlap checks). The places are
// collected at the first change; an image that is only read does not need them. There may be
// millions of tables, so collecting takes many turns:
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
    struct cluster_set tables; // L2 tables and refcount blocks
    // Header, L1 tables, snapshot table: sorted, none touches another.
    struct guard_range *ranges;
    size_t range_count;
    struct guard_range refcount_table; // moves

    // The members below are used while COLLECTING.
    struct op op; // internal
    // Next entry to look at: of the L1 table first, then of the refcount table.
    uint64_t next;
    // Tables added since collecting began; the op that added each has checked it.
    struct cluster_set added;
    struct waitq waiters; // ops that wait for the end
};

void guard_init(struct guard *guard);
void guard_free(struct guard *guard);

// Called before a change: waits until all metadata is known. Returns 0, OP_PARKED (plan again),
// -ENOMEM, or -EIO when tables overlap; the image is then marked corrupt.
int guard_wait(struct op *op);

// Returns the name of the metadata that lies in a cluster of [offset, offset + length) of the file,
// or NULL.
const char *guard_hit(const struct image *image, uint64_t offset, uint64_t length);

// Returns true when writing to [offset, offset + length) of the file, or giving it up, would
// destroy known metadata. The image is then marked corrupt.
bool guard_refuses(struct image *image, uint64_t offset, uint64_t length);

// An L2 table or a refcount block came or went. Before collecting has begun nothing is noted. A
// table goes only when a change is undone, after guard_wait. guard_add returns 0 or -ENOMEM.
int guard_add(struct image *image, uint64_t host_offset);
void guard_remove(struct image *image, uint64_t host_offset);
// The refcount table has moved to count clusters from first on.
void guard_move_refcount_table(struct image *image, uint64_t first, uint64_t count);

#endif
