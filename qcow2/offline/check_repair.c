// SPDX-License-Identifier: Apache-2.0
// check_repair.c: repairs the findings of a pass.
//
// The L1 and L2 tables are the truth. Repair changes nothing in the mapping; it only moves
// refcounts and flags towards the counts. A power cut at any point:
//  1. Every refcount is its old value or the true one, each in one write that a disk does not tear.
//     A true refcount is never worse than a false one.
//  2. Flags follow behind a barrier. COPIED is cleared where a cluster is shared only when its
//     refcount says so, or a copy on write would free a cluster that others still use.
//  3. A new refcount structure takes only clusters that no entry refers to; those of the old
//     structure count as referred to. The header names it behind a barrier, in one sector. Until
//     then the old structure is untouched.
//  4. The dirty and the corrupt bit are cleared last, behind a barrier and after another pass has
//     found no fault (check.c).
//  5. If a fault may hide references (an invalid entry may be a damaged reference, even to a
//     table), a cluster that looks unused is neither freed nor written: no refcount gets lower, no
//     COPIED flag is set, and a new refcount structure lies behind the end of the file.
// So a repair can be interrupted and started again any number of times.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/offline/check_pass.h"
#include "qcow2/format/format.h"
#include "qcow2/format/refcount_array.h"

// Tables are changed in pieces of a page, or of a cluster if that is smaller.
#define PIECE_BYTES_MAX 4096u

static uint64_t piece_bytes(const struct check_pass *pass)
{
    uint64_t cluster_size = header_cluster_size(&pass->header);

    return cluster_size < PIECE_BYTES_MAX ? cluster_size : PIECE_BYTES_MAX;
}

static int check_repair_failed(const struct check_pass *pass, int result, struct error *err)
{
    return error_set(err, -result, "'%s': cannot be repaired: %s; it is no worse than before",
                     pass->file->name, strerror(-result));
}

static int barrier(struct check_pass *pass, struct error *err)
{
    int ret = file_do_blocking(pass->file, FILE_DATASYNC, 0, 0);
    return ret < 0 ? check_repair_failed(pass, ret, err) : 0;
}

// ---- Refcounts in place -------------------------------------------------------------------------

// Corrects the n refcounts of a piece, which belong to the clusters from cluster on. Returns true
// if one changed. A refcount behind the end of the file is no leak yet, but would become one when
// the file grows.
static bool correct_piece(const struct check_pass *pass, uint8_t *piece, uint64_t cluster,
                          uint64_t n)
{
    unsigned order = pass->header.refcount_order;
    uint64_t max = refcount_array_max(order);
    bool changed = false;

    for (uint64_t i = 0; i < n; i++) {
        bool beyond = cluster + i >= pass->clusters;
        if (beyond && pass->beyond_end > 0)
            break; // a reference to a cluster beyond the end of the file
        uint64_t stored = refcount_array_get(piece, order, i);
        uint64_t counted = beyond ? 0 : counts_get(&pass->counted, cluster + i);
        bool repair =
            (stored > counted && !(pass->found & CHECK_FOUND_HIDDEN)) ||
            (stored < counted && counted <= max && pass->options->repair == CHECK_REPAIR_ALL);
        if (repair) {
            refcount_array_set(piece, order, i, counted);
            changed = true;
        }
    }
    return changed;
}

// Corrects the refcount blocks in place; writes the pieces that change.
static int correct_blocks(struct check_pass *pass, struct error *err)
{
    uint64_t size = piece_bytes(pass);
    uint64_t per_piece = size * 8 >> pass->header.refcount_order;
    uint64_t pieces = header_cluster_size(&pass->header) / size;
    uint8_t piece[PIECE_BYTES_MAX];

    for (uint64_t b = 0; b < pass->block_count; b++) {
        if (pass->blocks[b] == 0)
            continue;
        for (uint64_t p = 0; p < pieces; p++) {
            uint64_t offset = pass->blocks[b] + p * size;
            int ret = file_read_blocking(pass->file, piece, offset, size);
            if (ret == 0 && correct_piece(pass, piece, (b * pieces + p) * per_piece, per_piece))
                ret = file_write_blocking(pass->file, piece, offset, size);
            if (ret < 0)
                return check_repair_failed(pass, ret, err);
        }
    }
    return 0;
}

// ---- Flags and entries --------------------------------------------------------------------------

static int compare_fixes(const void *a, const void *b)
{
    uint64_t left = ((const struct check_fix *)a)->entry;
    uint64_t right = ((const struct check_fix *)b)->entry;

    return left < right ? -1 : left > right;
}

// Writes the fixes piece by piece.
static int write_fixes(struct check_pass *pass, struct error *err)
{
    uint64_t size = piece_bytes(pass);
    uint8_t piece[PIECE_BYTES_MAX];

    qsort(pass->fixes, pass->fix_count, sizeof(*pass->fixes), compare_fixes);
    for (size_t i = 0; i < pass->fix_count;) {
        uint64_t start = pass->fixes[i].entry & ~(size - 1);
        int ret = file_read_blocking(pass->file, piece, start, size);
        if (ret < 0)
            return check_repair_failed(pass, ret, err);
        for (; i < pass->fix_count && pass->fixes[i].entry - start < size; i++) {
            const struct check_fix *fix = &pass->fixes[i];
            uint8_t *entry = piece + (fix->entry - start);
            format_put64(entry, (format_get64(entry) & fix->keep) | fix->set);
        }
        ret = file_write_blocking(pass->file, piece, start, size);
        if (ret < 0)
            return check_repair_failed(pass, ret, err);
    }
    return 0;
}

// Returns true when the tables of the disk overlap nothing else, so that their entries may be
// written.
static bool tables_alone(const struct check_pass *pass)
{
    for (uint64_t i = counts_next(&pass->l2_tables, 0); i < pass->clusters;
         i = counts_next(&pass->l2_tables, i + 1)) {
        if (counts_get(&pass->counted, i) != counts_get(&pass->l2_tables, i))
            return false;
    }
    for (uint64_t i = counts_next(&pass->fixed, 0); i < pass->clusters;
         i = counts_next(&pass->fixed, i + 1)) {
        if (counts_get(&pass->counted, i) > 1) // 0: of a structure that was replaced
            return false;
    }
    return true;
}

static int correct_flags(struct check_pass *pass, struct error *err)
{
    int ret = 0;

    if (!tables_alone(pass))
        return 0;
    pass->fixes = calloc(CHECK_FIXES_MAX, sizeof(*pass->fixes));
    if (pass->fixes == NULL)
        return error_set(err, ENOMEM, "'%s': no memory to repair it", pass->file->name);
    pass->flag_counts = &pass->counted;
    pass->quiet = true; // its findings were reported before
    do {
        ret = check_walk_flags(pass, err);
        if (ret == 0)
            ret = write_fixes(pass, err);
    } while (ret == 0 && pass->more_fixes);
    return ret;
}

// ---- All of it ----------------------------------------------------------------------------------

uint64_t check_lost_growth(const struct check_pass *pass)
{
    return pass->header.incompatible & HEADER_INCOMPATIBLE_DIRTY
               ? WALK_LOST_GROWTH_MAX >> pass->header.cluster_bits
               : 0;
}

bool check_growth_lost(const struct check_pass *pass)
{
    return pass->options->repair == CHECK_REPAIR_ALL && pass->beyond_end > pass->clusters &&
           pass->beyond_end - pass->clusters <= check_lost_growth(pass);
}

int check_restore_growth(struct check_pass *pass, struct error *err)
{
    int ret = file_do_blocking(pass->file, FILE_TRUNCATE,
                               pass->beyond_end << pass->header.cluster_bits, 0);
    return ret < 0 ? check_repair_failed(pass, ret, err) : barrier(pass, err);
}

int check_repair(struct check_pass *pass, struct error *err)
{
    bool all = pass->options->repair == CHECK_REPAIR_ALL;
    int ret;

    assert(pass->stage == CHECK_FLAGGED);
    if (all && (pass->found & (CHECK_FOUND_BROKEN_STRUCTURE | CHECK_FOUND_MISSING_BLOCK)))
        ret = check_rebuild(pass, err);
    else if (pass->found & CHECK_FOUND_BROKEN_STRUCTURE)
        return 0; // a block may overlap something else; -r all makes new blocks
    else
        ret = correct_blocks(pass, err);
    if (ret == 0)
        ret = barrier(pass, err);
    if (ret == 0 && all)
        ret = correct_flags(pass, err);
    return ret < 0 ? ret : barrier(pass, err);
}
