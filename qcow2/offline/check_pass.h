// SPDX-License-Identifier: Apache-2.0
// check_pass.h: one pass of a check over an image, for check*.c only.
//
//   check_pass_begin   reads header, snapshot table and bitmap directory
//   check_pass_count   walks all references and counts them               check_count.c
//   check_pass_compare compares the refcounts on disk with the counts     check_compare.c
//   check_pass_flags   compares the COPIED flags with the refcounts       check_flags.c
//   check_pass_end
//
// and to repair something, before the end:
//
//   check_repair_*                                                        check_repair.c,
//                                                                         check_rebuild.c
#ifndef LAZYCOW_QCOW2_OFFLINE_CHECK_PASS_H
#define LAZYCOW_QCOW2_OFFLINE_CHECK_PASS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/format/bitmap_directory.h"
#include "qcow2/offline/check.h"
#include "qcow2/base/counts.h"
#include "qcow2/format/header.h"
#include "qcow2/format/snapshot_table.h"
#include "qcow2/walk/walk.h"

// Adjacent clusters with one and the same wrong refcount, which are reported in one line.
struct check_mismatch {
    uint64_t first;
    uint64_t clusters; // 0: none
    uint64_t stored;
    uint32_t counted;
};

// A change of a table entry. Its new value is (old & keep) | set.
struct check_fix {
    uint64_t entry; // host offset
    uint64_t keep;
    uint64_t set;
};

// Most fixes that are kept before they are written (6 MiB); more take another walk.
#define CHECK_FIXES_MAX (256u << 10)

// Progress of a pass. Each stage needs the results of the stages before it.
enum check_stage { CHECK_BEGUN, CHECK_COUNTED, CHECK_COMPARED, CHECK_FLAGGED };

// Findings of a pass that decide how it is repaired.
enum check_found {
    // The refcount table or a refcount block is not where it can be trusted.
    CHECK_FOUND_BROKEN_STRUCTURE = 1,
    // A fault that may hide references, so that a cluster that seems unused may be in use.
    CHECK_FOUND_HIDDEN = 2,
    CHECK_FOUND_LOW_REFCOUNT = 4,
    // A cluster in use has no refcount block.
    CHECK_FOUND_MISSING_BLOCK = 8,
    // A refcount behind the end of the file is not 0.
    CHECK_FOUND_REFCOUNT_BEYOND = 16,
};

struct check_pass {
    enum check_stage stage;
    unsigned found; // bits of enum check_found
    struct file *file;
    const struct check_options *options;
    // No messages: the findings of this pass were reported before.
    bool quiet;
    uint64_t messages;
    struct check_result result;

    struct header header;
    struct snapshot_table snapshots;
    struct bitmap_directory bitmaps;
    // Clusters of the file. The last one may be incomplete.
    uint64_t clusters;

    // Results of the walk. All counts have room for more clusters than the file has, for a refcount
    // structure that is built behind its end.
    struct counts counted;
    struct counts copied;     // references from the disk with the COPIED flag
    struct counts not_copied; // references from the disk without the COPIED flag
    struct counts l2_tables;  // references to L2 tables
    struct counts fixed;      // references to metadata that can only have one
    // Offset of each refcount block that can be used, else 0.
    uint64_t *blocks;
    uint64_t block_count; // entries of the refcount table
    // One past the highest referenced cluster beyond the end of the file; 0: none.
    uint64_t beyond_end;

    // Results of the comparison.
    struct check_mismatch mismatch; // not reported yet
    uint64_t end;                   // one past the highest cluster in use
    uint8_t *ones;                  // 64 refcounts of 1 as on disk

    // The counts that flags are compared with, and the entries to change.
    const struct counts *flag_counts;
    // 1 where the refcount on disk is 1; empty when no refcount is wrong.
    struct counts ones_on_disk;
    struct check_fix *fixes; // NULL: only report
    size_t fix_count;
    bool more_fixes; // than fit

    // State of the scan of the refcount blocks.
    int (*take_refcounts)(struct check_pass *pass, uint64_t cluster, uint64_t n,
                          const uint8_t *stored);
    uint64_t taken;      // clusters done
    uint64_t next_block; // the next block to read, and bytes into it
    uint64_t next_offset;

    bool finished; // of the running walk or scan
    int walk_result;
};

// Passes a line to the user, unless there were too many.
__attribute__((format(printf, 2, 3))) void check_say(struct check_pass *pass, const char *format,
                                                     ...);

// Each returns 0 or a negative errno, and fills err if it has one.
int check_pass_begin(struct check_pass *pass, struct error *err);
int check_pass_count(struct check_pass *pass, struct error *err);
int check_pass_compare(struct check_pass *pass, struct error *err);
int check_pass_flags(struct check_pass *pass, struct error *err);
void check_pass_end(struct check_pass *pass);

// Blocks until pass->finished. Returns pass->walk_result with a message.
int check_pass_wait(struct check_pass *pass, struct error *err);
// done of a walk or scan whose context is the pass.
void check_pass_done(void *context, int result);

// Walks the disk's mapping, compares each COPIED flag with pass->flag_counts, and fills
// pass->fixes.
int check_walk_flags(struct check_pass *pass, struct error *err);

// Calls take with the refcounts of every usable block, in order. stored is NULL when all n
// refcounts from cluster on are 0. cluster is a multiple of 64.
typedef int check_take_refcounts(struct check_pass *pass, uint64_t cluster, uint64_t n,
                                 const uint8_t *stored);
int check_scan_refcounts(struct check_pass *pass, check_take_refcounts *take, struct error *err);

// Returns the furthest distance behind the end of a dirty image's file, in clusters, at which a
// crash may leave references.
uint64_t check_lost_growth(const struct check_pass *pass);
// A crash of a dirty image may keep an entry and lose the growth of the file that the entry points
// into. The lost clusters read as the zeros that they held, so the file may grow again; then all
// references are counted anew.
bool check_growth_lost(const struct check_pass *pass);
int check_restore_growth(struct check_pass *pass, struct error *err);

// Returns true when the entry maps zeros without needing its host cluster, so that a wrong one does
// no harm.
bool check_names_in_vain(const struct check_pass *pass, const struct walk_problem *problem);

// Repairs the findings of a pass as far as its options ask for it; see check_repair.c.
int check_repair(struct check_pass *pass, struct error *err);
// Writes a new refcount structure from pass->counted and makes it the image's own.
int check_rebuild(struct check_pass *pass, struct error *err);

#endif
