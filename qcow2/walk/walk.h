// SPDX-License-Identifier: Apache-2.0
// walk.h: visits every reference to a host cluster in an image: the header, the L1 and L2 tables of
// the disk and of its snapshots, the clusters that they map, the snapshot table, the refcount table
// with its blocks, and the bitmaps. A walk counts nothing and judges little; check and recovery do.
// Format: qcow2 specification.
//
// Each L2 table is read once, in the order of the file, however many L1 tables refer to it. The
// entries of an L2 table beyond the end of the file, or at a misaligned offset, are not visited.
//
// Without WALK_ABSURD the size of the file bounds the time and memory of a walk and its visitor. An
// entry that names a cluster further behind the end of the file than a crash can explain is then a
// problem, and so is a snapshot's L1 table that is not inside the file or overlaps another one.
//
//   structure → L1 tables ⇄ L2 tables → refcount table → bitmap tables → done
//               (back for more when the list of L2 tables is full)
#ifndef LAZYCOW_QCOW2_WALK_WALK_H
#define LAZYCOW_QCOW2_WALK_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/format/bitmap_directory.h"
#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/format/header.h"
#include "qcow2/walk/scan.h"
#include "qcow2/format/snapshot_table.h"

enum walk_kind {
    WALK_HEADER,
    WALK_L1, // of the disk or of a snapshot
    WALK_L2,
    WALK_DATA, // also a zero cluster with a host cluster in reserve
    WALK_COMPRESSED,
    WALK_SNAPSHOT_TABLE,
    WALK_REFCOUNT_TABLE,
    WALK_REFCOUNT_BLOCK,
    WALK_BITMAP,        // directory, tables and data
    WALK_CRYPTO_HEADER, // "Full disk encryption header pointer"
};

// Consecutive host clusters that one table, or consecutive entries of one table, refer to.
struct walk_reference {
    enum walk_kind kind;
    // The first cluster, counted from the start of the file. May be beyond its end.
    uint64_t cluster;
    uint64_t clusters; // how many, > 0
    // L2, DATA: consecutive entries, each of which refers to one of the clusters. One misaligned
    // entry refers to two.
    uint64_t entries;
    // References to each cluster: k for an L2 table that k L1 tables share.
    uint32_t count;
    // References of count that come from the disk itself, not from a snapshot.
    uint32_t active;
    bool copied; // L2, DATA: the entries have the COPIED flag
    // L2, DATA, COMPRESSED: first guest byte that the clusters map. REFCOUNT_BLOCK: its index in
    // the refcount table.
    uint64_t guest;
    // L2, DATA, COMPRESSED, REFCOUNT_BLOCK: host offset of the first entry that refers to the
    // clusters.
    uint64_t entry;
};

enum walk_fault {
    // An entry has bits that the specification reserves.
    WALK_RESERVED_BITS,
    // An entry has an offset that is not a multiple of the cluster size.
    WALK_MISALIGNED,
    WALK_COMPRESSED_FLAGS, // a compressed cluster has the COPIED flag
    // A snapshot's L1 table is impossible (snapshot_table.h).
    WALK_SNAPSHOT_L1,
    WALK_ZERO_FLAG_V2, // a zero flag in version 2, which has none
    // An L1 entry has the COPIED flag and names no table.
    WALK_COPIED_NOTHING,
    WALK_FAR, // clusters far beyond the end of the file
};

struct walk_problem {
    enum walk_fault fault;
    enum walk_kind kind; // kind of the clusters that the entry refers to
    // Host offset of the entry. WALK_SNAPSHOT_L1: the snapshot's index.
    uint64_t entry;
    uint64_t value;  // of the entry
    uint64_t guest;  // as in walk_reference
    uint32_t count;  // as in walk_reference
    uint32_t active; // 0: only snapshots are hit
};

struct walk_visitor {
    // Return 0, or a negative errno that ends the walk.
    int (*reference)(void *context, const struct walk_reference *reference);
    int (*problem)(void *context, const struct walk_problem *problem);
    // Tells how many of the known L2 tables were read, less than all. May be NULL.
    void (*progress)(void *context, uint64_t done, uint64_t total);
};

// Furthest distance behind the end of a file, in bytes, at which a crash may leave references: the
// data that a disk accepts before it is asked to make the file's size durable. Much more than any
// host caches of one file.
#define WALK_LOST_GROWTH_MAX (64ull << 30)

// The references to visit.
#define WALK_MAPPING (1u << 0)   // the disk's L1 and L2 tables
#define WALK_SNAPSHOTS (1u << 1) // L1 and L2 tables of snapshots, and the snapshot table
#define WALK_REFCOUNTS (1u << 2) // refcount table and blocks
#define WALK_OTHER (1u << 3)     // header, bitmaps, crypto header
// References that no sound image has are visited, too.
#define WALK_ABSURD (1u << 4)
#define WALK_ALL (WALK_MAPPING | WALK_SNAPSHOTS | WALK_REFCOUNTS | WALK_OTHER)

struct walk_phase;
struct walk_l1_source;
struct walk_l2_table;

// Owned by the caller; lives until done runs.
struct walk {
    // Set by the caller; borrowed.
    struct file *file;
    const struct header *header;
    const struct snapshot_table *snapshots;
    const struct bitmap_directory *bitmaps;
    const struct walk_visitor *visitor;
    void *context; // of visitor and done
    unsigned parts;
    // Runs from the run queue at the end. result is 0 or a negative errno.
    void (*done)(void *context, int result);

    // Statistics, complete when done runs: clusters that the disk maps; those that do not follow
    // their predecessor in the file, or are compressed; those that are compressed.
    uint64_t allocated_clusters;
    uint64_t fragmented_clusters;
    uint64_t compressed_clusters;

    // Private.
    struct task task;
    uint64_t file_bytes;
    uint64_t end; // one past the last cluster of the file
    // One past the last cluster that an entry may name without being absurd.
    uint64_t far;
    const struct walk_phase *phase;
    struct scan scan;
    struct walk_l1_source *l1_sources; // L1 tables to be read
    size_t l1_source_count;
    struct walk_l2_table *l2_tables; // L2 tables to be read
    size_t l2_count;
    size_t l2_capacity;
    size_t l2_taken;  // the table of the last range that was taken
    uint64_t l2_done; // tables read, for progress
    // Index of the next thing to read: L1 table, L2 table or bitmap.
    size_t next_source;
    uint64_t next_offset; // bytes into that L1 table, L2 table or bitmap
    // Index of the next L1 table while L2 tables are read.
    size_t next_l1;
    uint64_t next_l1_offset;
    // Host offset that would continue the last data cluster; 0: none.
    uint64_t contiguous;
    uint64_t run_value; // the entry that would extend the run
    // Data clusters that are not visited yet; none if clusters is 0.
    struct walk_reference run;
};

// Starts the walk. done never runs inside this call, and the visitor is called from the run queue
// only.
void walk_start(struct walk *walk);

#endif
