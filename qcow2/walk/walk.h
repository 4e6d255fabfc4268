// SPDX-License-Identifier: Apache-2.0
// walk.h: visits every reference to a host cluster that an image holds: header, L1 and L2 tables of
// the disk and its snapshots, what they map, snapshot table, refcount table and blocks, bitmaps. It
// counts nothing and judges little; check and recovery do. Format: qcow2 specification.
//
// Each L2 table is read once, in the order of the file, however many L1 tables refer to it. What an
// L2 table beyond the end of the file or at a misaligned offset would map is not visited.
//
// Unless WALK_ABSURD is asked for, time and memory of a walk and its visitor are bounded by the size
// of the file: what an entry names further behind its end than a crash can explain is a problem, and
// so is a snapshot's L1 table that is not inside the file or overlaps another one.
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

// Consecutive host clusters that are referenced by one table, or by consecutive entries of one.
struct walk_reference {
    enum walk_kind kind;
    uint64_t cluster;  // the first, counted from the start of the file; may be beyond its end
    uint64_t clusters; // how many, > 0
    uint64_t entries;  // L2, DATA: consecutive entries that refer to one of them each; one entry
                       // that is misaligned refers to two
    uint32_t count;    // references to each of them: of an L2 table that k L1 tables share, k
    uint32_t active;   // those of count that come from the disk itself, not from a snapshot
    bool copied;       // L2, DATA: the entries have the COPIED flag
    uint64_t guest;    // L2, DATA, COMPRESSED: guest bytes where what they map begins;
                       // REFCOUNT_BLOCK: its index in the refcount table
    uint64_t entry;    // L2, DATA, COMPRESSED, REFCOUNT_BLOCK: host offset of the first entry
                       // that refers to them
};

enum walk_fault {
    WALK_RESERVED_BITS,    // an entry has bits that the specification reserves
    WALK_MISALIGNED,       // an entry has an offset that is not a multiple of the cluster size
    WALK_COMPRESSED_FLAGS, // a compressed cluster has the COPIED flag
    WALK_SNAPSHOT_L1,      // a snapshot's L1 table cannot be one (snapshot_table.h)
    WALK_ZERO_FLAG_V2,     // a zero flag in a version that has none
    WALK_COPIED_NOTHING,   // an L1 entry has the COPIED flag and names no table
    WALK_FAR,              // clusters far beyond the end of the file
};

struct walk_problem {
    enum walk_fault fault;
    enum walk_kind kind; // of what the entry refers to
    uint64_t entry;      // host offset of the entry; WALK_SNAPSHOT_L1: the snapshot's index
    uint64_t value;      // of the entry
    uint64_t guest;      // as in walk_reference
    uint32_t count;      // as in walk_reference
    uint32_t active;     // 0: only snapshots are hit
};

struct walk_visitor {
    // Return 0, or a negative errno that ends the walk.
    int (*reference)(void *context, const struct walk_reference *reference);
    int (*problem)(void *context, const struct walk_problem *problem);
    // How many L2 tables were read of those known so far; may be NULL.
    void (*progress)(void *context, uint64_t done, uint64_t total);
};

// Furthest behind the end of a file that a crash may leave references: what a disk takes in before
// it is asked to make its size durable. Much more than any host caches of one file.
#define WALK_LOST_GROWTH_MAX (64ull << 30)

// What to visit.
#define WALK_MAPPING (1u << 0)   // the disk's L1 and L2 tables
#define WALK_SNAPSHOTS (1u << 1) // those of snapshots, and the snapshot table
#define WALK_REFCOUNTS (1u << 2) // refcount table and blocks
#define WALK_OTHER (1u << 3)     // header, bitmaps, crypto header
#define WALK_ABSURD (1u << 4)    // what no sound image has is visited as the rest is
#define WALK_ALL (WALK_MAPPING | WALK_SNAPSHOTS | WALK_REFCOUNTS | WALK_OTHER)

struct walk_phase;
struct walk_l1_source;
struct walk_l2_table;

// Caller-owned; lives until done runs.
struct walk {
    // Set by the caller; borrowed.
    struct file *file;
    const struct header *header;
    const struct snapshot_table *snapshots;
    const struct bitmap_directory *bitmaps;
    const struct walk_visitor *visitor;
    void *context; // of visitor and done
    unsigned parts;
    // Runs from the run queue at the end: 0 or a negative errno.
    void (*done)(void *context, int result);

    // Clusters that the disk maps; those of which the one before lies elsewhere (or that are
    // compressed); those that are compressed. Complete when done runs.
    uint64_t allocated_clusters;
    uint64_t fragmented_clusters;
    uint64_t compressed_clusters;

    // Private.
    struct task task;
    uint64_t file_bytes;
    uint64_t end; // one past the last cluster of the file
    uint64_t far; // and past the last one that an entry may name without being absurd
    const struct walk_phase *phase;
    struct scan scan;
    struct walk_l1_source *l1_sources; // L1 tables to be read
    size_t l1_source_count;
    struct walk_l2_table *l2_tables; // L2 tables to be read
    size_t l2_count;
    size_t l2_capacity;
    size_t l2_taken;      // the table that the last range taken belongs to
    uint64_t l2_done;     // tables read, for progress
    size_t next_source;   // what to read next: L1 table, L2 table or bitmap, by its index,
    uint64_t next_offset; // and bytes into it
    size_t next_l1;       // the same for L1 tables while L2 tables are read
    uint64_t next_l1_offset;
    uint64_t contiguous;       // host offset that would continue the last data cluster; 0: none
    uint64_t run_value;        // entry that would extend the run
    struct walk_reference run; // data clusters not yet visited; none if clusters is 0
};

// Starts; done never runs inside, and the visitor is called from the run queue only.
void walk_start(struct walk *walk);

#endif
