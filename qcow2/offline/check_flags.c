// SPDX-License-Identifier: Apache-2.0
// check_flags.c: compares the COPIED flags of the disk's L1 and L2 entries with the refcounts.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "qcow2/offline/check_pass.h"
#include "qcow2/format/format.h"
#include "qcow2/format/refcount_array.h"

static void add_fix(struct check_pass *pass, struct check_fix fix)
{
    if (pass->fixes == NULL)
        return;
    if (pass->fix_count == CHECK_FIXES_MAX)
        pass->more_fixes = true;
    else
        pass->fixes[pass->fix_count++] = fix;
}

static int flag_reference(void *context, const struct walk_reference *ref)
{
    struct check_pass *pass = context;

    if (ref->active == 0 || (ref->kind != WALK_L2 && ref->kind != WALK_DATA))
        return 0;
    for (uint64_t i = 0; i < ref->entries; i++) {
        uint64_t cluster = ref->cluster + i;
        uint32_t count = cluster < pass->clusters ? counts_get(pass->flag_counts, cluster) : 0;
        bool one = count == 1;
        if (one == ref->copied)
            continue;
        uint64_t guest = ref->guest + (i << pass->header.cluster_bits);
        uint64_t entry = ref->entry + i * FORMAT_ENTRY_BYTES;
        pass->result.corruptions += ref->active;
        check_say(pass,
                  "ERROR entry of %s at %#" PRIx64 " (guest offset %#" PRIx64
                  ") %s the COPIED flag, but the refcount of cluster %" PRIu64 " is %s",
                  ref->kind == WALK_L2 ? "L2 table" : "data cluster", entry, guest,
                  ref->copied ? "has" : "lacks", cluster, one ? "1" : "not 1");
        // A cluster that seems to be referenced once may also have a hidden reference.
        if ((pass->found & CHECK_FOUND_HIDDEN) && count < 2)
            continue;
        add_fix(pass, (struct check_fix){
                          .entry = entry, .keep = ~FORMAT_COPIED, .set = one ? FORMAT_COPIED : 0});
    }
    return 0;
}

bool check_names_in_vain(const struct check_pass *pass, const struct walk_problem *problem)
{
    return problem->fault == WALK_MISALIGNED && problem->kind == WALK_DATA &&
           problem->value & FORMAT_L2_ZERO && pass->header.version >= 3;
}

// Faults are reported when references are counted. This visitor only repairs those that can be
// repaired.
static int flag_problem(void *context, const struct walk_problem *problem)
{
    struct check_pass *pass = context;

    if (problem->fault == WALK_COMPRESSED_FLAGS || problem->fault == WALK_COPIED_NOTHING)
        add_fix(pass, (struct check_fix){.entry = problem->entry, .keep = ~FORMAT_COPIED});
    if (check_names_in_vain(pass, problem))
        add_fix(pass, (struct check_fix){.entry = problem->entry, .keep = FORMAT_L2_ZERO});
    return 0;
}

int check_walk_flags(struct check_pass *pass, struct error *err)
{
    static const struct walk_visitor visitor = {.reference = flag_reference,
                                                .problem = flag_problem};
    struct walk walk = {.file = pass->file,
                        .header = &pass->header,
                        .visitor = &visitor,
                        .context = pass,
                        .parts = WALK_MAPPING | WALK_ABSURD,
                        .done = check_pass_done};

    pass->fix_count = 0;
    pass->more_fixes = false;
    pass->finished = false;
    walk_start(&walk);
    return check_pass_wait(pass, err);
}

// Returns true when every flag agrees with the counts; needs no walk.
static bool flags_agree(const struct check_pass *pass)
{
    for (uint64_t i = counts_next(&pass->not_copied, 0); i < pass->clusters;
         i = counts_next(&pass->not_copied, i + 1)) {
        if (counts_get(&pass->counted, i) == 1)
            return false;
    }
    uint64_t i = 0;
    while (i < pass->clusters) {
        uint64_t word;
        if (i % COUNTS_CHUNK_CLUSTERS == 0 && counts_word(&pass->counted, i, &word)) {
            i += COUNTS_CHUNK_CLUSTERS; // no cluster of the chunk is referenced twice
            continue;
        }
        if (counts_get(&pass->counted, i) > 1 && counts_get(&pass->copied, i) > 0)
            return false;
        i++;
    }
    return true;
}

// Sets the counts to 1 where the refcount on disk is 1, and to 0 elsewhere.
static int take_ones(struct check_pass *pass, uint64_t cluster, uint64_t n, const uint8_t *stored)
{
    int ret = 0;

    for (uint64_t i = 0; stored != NULL && i < n && ret == 0; i++) {
        if (refcount_array_get(stored, pass->header.refcount_order, i) == 1)
            ret = counts_set(&pass->ones_on_disk, cluster + i, 1);
    }
    return ret;
}

int check_pass_flags(struct check_pass *pass, struct error *err)
{
    bool refcounts_agree = pass->result.leaks == 0 && !(pass->found & CHECK_FOUND_LOW_REFCOUNT);

    assert(pass->stage == CHECK_COMPARED);
    if (refcounts_agree && pass->beyond_end == 0 && flags_agree(pass))
        return 0;
    pass->flag_counts = &pass->counted;
    if (!refcounts_agree) {
        int ret = counts_init(&pass->ones_on_disk, pass->clusters);
        if (ret < 0)
            return error_set(err, -ret, "'%s': no memory to check it", pass->file->name);
        ret = check_scan_refcounts(pass, take_ones, err);
        if (ret < 0)
            return ret;
        pass->flag_counts = &pass->ones_on_disk;
    }
    return check_walk_flags(pass, err);
}
