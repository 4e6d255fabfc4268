// SPDX-License-Identifier: Apache-2.0
// check_count.c: counts the references that a walk visits, and the faults that it meets.
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "qcow2/offline/check_pass.h"
#include "qcow2/format/format.h"

static const char *const kind_names[] = {
    [WALK_HEADER] = "header",
    [WALK_L1] = "L1 table",
    [WALK_L2] = "L2 table",
    [WALK_DATA] = "data cluster",
    [WALK_COMPRESSED] = "compressed cluster",
    [WALK_SNAPSHOT_TABLE] = "snapshot table",
    [WALK_REFCOUNT_TABLE] = "refcount table",
    [WALK_REFCOUNT_BLOCK] = "refcount block",
    [WALK_BITMAP] = "bitmap",
    [WALK_CRYPTO_HEADER] = "encryption header",
};

static bool of_refcounts(const struct walk_reference *ref)
{
    return ref->kind == WALK_REFCOUNT_BLOCK || ref->kind == WALK_REFCOUNT_TABLE;
}

// Reports the part of a reference that lies behind the end of the file: clusters [first, end).
static void beyond(struct check_pass *pass, const struct walk_reference *ref, uint64_t first,
                   uint64_t end)
{
    // For data each entry is wrong, for a table the entry that names it; each counts as often as it
    // is read.
    uint64_t entries = (ref->kind == WALK_DATA ? end - first : 1) * ref->count;

    pass->result.corruptions += entries;
    // No lost growth explains an entry this far out, so it may be meant for another place.
    if (!of_refcounts(ref) && end > pass->clusters + check_lost_growth(pass))
        pass->found |= CHECK_FOUND_HIDDEN;
    if (end > pass->beyond_end)
        pass->beyond_end = end;
    if (ref->kind == WALK_REFCOUNT_BLOCK)
        check_say(pass,
                  "ERROR refcount block %" PRIu64 " at cluster %" PRIu64
                  " is beyond the end of the file",
                  ref->guest, first);
    else if (end - first == 1)
        check_say(pass,
                  "ERROR %s at cluster %" PRIu64 " (guest offset %#" PRIx64
                  ") is beyond the end of the file",
                  kind_names[ref->kind], first, ref->guest);
    else
        check_say(pass,
                  "ERROR %s at clusters %" PRIu64 "-%" PRIu64 " (guest offset %#" PRIx64
                  ") is beyond the end of the file",
                  kind_names[ref->kind], first, end - 1, ref->guest);
}

static int count_kind(struct check_pass *pass, const struct walk_reference *ref, uint64_t clusters)
{
    int ret = 0;

    switch (ref->kind) {
    case WALK_L2:
        ret = counts_add(&pass->l2_tables, ref->cluster, clusters, ref->count);
        break;
    case WALK_DATA:
    case WALK_COMPRESSED:
        break;
    case WALK_REFCOUNT_BLOCK:
        pass->blocks[ref->guest] = ref->cluster << pass->header.cluster_bits;
        return counts_add(&pass->fixed, ref->cluster, clusters, ref->count);
    default:
        return counts_add(&pass->fixed, ref->cluster, clusters, ref->count);
    }
    if (ret < 0 || ref->active == 0 || ref->kind == WALK_COMPRESSED)
        return ret;
    return counts_add(ref->copied ? &pass->copied : &pass->not_copied, ref->cluster, clusters, 1);
}

// Counts the part of a reference behind the end of the file, as far as a new structure may be built
// there.
static int count_beyond(struct check_pass *pass, const struct walk_reference *ref, uint64_t first,
                        uint64_t end)
{
    uint64_t room = pass->counted.clusters;

    if (end > room)
        end = room;
    if (of_refcounts(ref) || first >= end)
        return 0;
    return counts_add(&pass->counted, first, end - first, ref->count);
}

static int count_reference(void *context, const struct walk_reference *ref)
{
    struct check_pass *pass = context;
    uint64_t clusters = ref->clusters;
    int ret;

    if (ref->cluster >= pass->clusters || clusters > pass->clusters - ref->cluster) {
        uint64_t first = ref->cluster > pass->clusters ? ref->cluster : pass->clusters;
        beyond(pass, ref, first, ref->cluster + clusters);
        if (of_refcounts(ref))
            pass->found |= CHECK_FOUND_BROKEN_STRUCTURE;
        ret = count_beyond(pass, ref, first, ref->cluster + clusters);
        if (ret < 0 || ref->cluster >= pass->clusters)
            return ret;
        clusters = pass->clusters - ref->cluster;
    }
    ret = counts_add(&pass->counted, ref->cluster, clusters, ref->count);
    return ret < 0 ? ret : count_kind(pass, ref, clusters);
}

// Returns true when the entry may be a damaged reference to a cluster that was not visited. A
// damaged compressed entry still names the cluster that it had.
static bool may_hide(const struct check_pass *pass, const struct walk_problem *problem)
{
    return problem->kind != WALK_REFCOUNT_BLOCK && problem->fault != WALK_COMPRESSED_FLAGS &&
           !check_names_in_vain(pass, problem);
}

static int count_problem(void *context, const struct walk_problem *problem)
{
    static const char *const faults[] = {
        [WALK_RESERVED_BITS] = "has reserved bits set",
        [WALK_MISALIGNED] = "is not aligned to a cluster",
        [WALK_COMPRESSED_FLAGS] = "has the COPIED flag, which compressed clusters must not",
        [WALK_SNAPSHOT_L1] = "has an impossible offset or size",
        [WALK_FAR] = "is far beyond the end of the file",
        [WALK_ZERO_FLAG_V2] = "has the zero flag, which version 2 does not know",
        [WALK_COPIED_NOTHING] = "has the COPIED flag and names no table",
    };
    struct check_pass *pass = context;

    pass->result.corruptions += problem->count;
    if (may_hide(pass, problem))
        pass->found |= CHECK_FOUND_HIDDEN;
    switch (problem->kind) {
    case WALK_L1:
        check_say(pass, "ERROR L1 table of snapshot %" PRIu64 " %s", problem->entry,
                  faults[problem->fault]);
        break;
    case WALK_REFCOUNT_BLOCK:
        pass->found |= CHECK_FOUND_BROKEN_STRUCTURE;
        check_say(pass, "ERROR refcount table entry %" PRIu64 " (%#" PRIx64 ") %s", problem->guest,
                  problem->value, faults[problem->fault]);
        break;
    case WALK_BITMAP:
        check_say(pass, "ERROR bitmap table entry at %#" PRIx64 " (%#" PRIx64 ") %s",
                  problem->entry, problem->value, faults[problem->fault]);
        break;
    default:
        check_say(pass,
                  "ERROR entry of %s at %#" PRIx64 " (%#" PRIx64 ", guest offset %#" PRIx64 ") %s",
                  kind_names[problem->kind], problem->entry, problem->value, problem->guest,
                  faults[problem->fault]);
        break;
    }
    return 0;
}

static void count_progress(void *context, uint64_t done, uint64_t total)
{
    struct check_pass *pass = context;

    if (pass->options->progress != NULL)
        pass->options->progress(pass->options->context, done, total);
}

int check_pass_count(struct check_pass *pass, struct error *err)
{
    static const struct walk_visitor visitor = {
        .reference = count_reference, .problem = count_problem, .progress = count_progress};
    struct walk walk = {.file = pass->file,
                        .header = &pass->header,
                        .snapshots = &pass->snapshots,
                        .bitmaps = &pass->bitmaps,
                        .visitor = &visitor,
                        .context = pass,
                        .parts = WALK_ALL | WALK_ABSURD,
                        .done = check_pass_done};

    pass->finished = false;
    walk_start(&walk);
    int ret = check_pass_wait(pass, err);
    pass->result.allocated_clusters = walk.allocated_clusters;
    pass->result.fragmented_clusters = walk.fragmented_clusters;
    pass->result.compressed_clusters = walk.compressed_clusters;
    return ret;
}
