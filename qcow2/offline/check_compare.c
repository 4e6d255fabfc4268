// SPDX-License-Identifier: Apache-2.0
// check_compare.c: compares the refcounts on disk with the references that were counted.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/offline/check_pass.h"
#include "qcow2/format/format.h"
#include "qcow2/format/refcount_array.h"
#include "qcow2/walk/scan.h"

// Refcounts that are compared at a time: the counts of a word of a bitmap.
#define GROUP 64

// ---- Reading the refcount blocks ----------------------------------------------------------------

static uint64_t per_block(const struct check_pass *pass)
{
    return header_cluster_size(&pass->header) * 8 >> pass->header.refcount_order;
}

// Passes on refcounts that are 0 because there is no block on disk, up to cluster end.
static int take_nothing(struct check_pass *pass, uint64_t end)
{
    if (end > pass->clusters)
        end = pass->clusters;
    if (pass->taken >= end)
        return 0;
    uint64_t first = pass->taken;
    pass->taken = end;
    return pass->take_refcounts(pass, first, end - first, NULL);
}

static bool next_block(void *context, struct scan_range *range)
{
    struct check_pass *pass = context;
    uint64_t cluster_size = header_cluster_size(&pass->header);

    while (pass->next_block < pass->block_count && pass->blocks[pass->next_block] == 0)
        pass->next_block++;
    if (pass->next_block == pass->block_count)
        return false;
    uint64_t length = cluster_size - pass->next_offset;
    if (length > SCAN_RANGE_MAX)
        length = SCAN_RANGE_MAX;
    range->offset = pass->blocks[pass->next_block] + pass->next_offset;
    range->length = (size_t)length;
    // The tag is the first cluster whose refcount lies in the range.
    range->tag =
        pass->next_block * per_block(pass) + (pass->next_offset * 8 >> pass->header.refcount_order);
    pass->next_offset += length;
    if (pass->next_offset == cluster_size) {
        pass->next_offset = 0;
        pass->next_block++;
    }
    return true;
}

// Looks for refcounts of clusters behind the end of the file among the n refcounts in bytes, the
// first of which belongs to cluster.
static void look_beyond(struct check_pass *pass, uint64_t cluster, uint64_t n, const uint8_t *bytes)
{
    uint64_t i = cluster < pass->clusters ? pass->clusters - cluster : 0;

    for (; i < n && !(pass->found & CHECK_FOUND_REFCOUNT_BEYOND); i++) {
        if (refcount_array_get(bytes, pass->header.refcount_order, i) != 0)
            pass->found |= CHECK_FOUND_REFCOUNT_BEYOND;
    }
}

static int take_block(void *context, const struct scan_range *range, const uint8_t *bytes)
{
    struct check_pass *pass = context;
    uint64_t n = (uint64_t)range->length * 8 >> pass->header.refcount_order;

    int ret = take_nothing(pass, range->tag);
    if (ret < 0)
        return ret;
    look_beyond(pass, range->tag, n, bytes);
    if (range->tag >= pass->clusters)
        return 0;
    if (n > pass->clusters - range->tag)
        n = pass->clusters - range->tag;
    pass->taken = range->tag + n;
    return pass->take_refcounts(pass, range->tag, n, bytes);
}

int check_scan_refcounts(struct check_pass *pass, check_take_refcounts *take, struct error *err)
{
    struct scan scan = {.file = pass->file,
                        .context = pass,
                        .next = next_block,
                        .take = take_block,
                        .done = check_pass_done};

    pass->take_refcounts = take;
    pass->taken = 0;
    pass->next_block = 0;
    pass->next_offset = 0;
    pass->finished = false;
    scan_start(&scan);
    int ret = check_pass_wait(pass, err);
    if (ret < 0)
        return ret;
    ret = take_nothing(pass, pass->clusters);
    return ret < 0 ? error_set(err, -ret, "'%s': cannot be checked: %s", pass->file->name,
                               strerror(-ret))
                   : 0;
}

// ---- Comparing ----------------------------------------------------------------------------------

static void say_mismatch(struct check_pass *pass)
{
    const struct check_mismatch m = pass->mismatch;
    const char *what = m.stored > m.counted ? "Leaked" : "ERROR";

    pass->mismatch.clusters = 0;
    if (m.clusters == 1)
        check_say(pass, "%s cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu32, what,
                  m.first, m.stored, m.counted);
    else if (m.clusters > 1)
        check_say(pass,
                  "%s clusters %" PRIu64 "-%" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu32,
                  what, m.first, m.first + m.clusters - 1, m.stored, m.counted);
}

static void mismatch(struct check_pass *pass, uint64_t cluster, uint64_t stored, uint32_t counted)
{
    struct check_mismatch *m = &pass->mismatch;

    if (stored > counted) {
        pass->result.leaks++;
    } else {
        pass->result.corruptions++;
        pass->found |= CHECK_FOUND_LOW_REFCOUNT;
        uint64_t block = cluster / per_block(pass);
        if (block >= pass->block_count || pass->blocks[block] == 0)
            pass->found |= CHECK_FOUND_MISSING_BLOCK;
    }
    if (m->clusters > 0 && m->first + m->clusters == cluster && m->stored == stored &&
        m->counted == counted) {
        m->clusters++;
        return;
    }
    say_mismatch(pass);
    *m = (struct check_mismatch){
        .first = cluster, .clusters = 1, .stored = stored, .counted = counted};
}

static void compare_one(struct check_pass *pass, uint64_t cluster, const uint8_t *stored,
                        uint64_t index)
{
    uint32_t counted = counts_get(&pass->counted, cluster);
    uint64_t refcount =
        stored == NULL ? 0 : refcount_array_get(stored, pass->header.refcount_order, index);

    if (refcount > 0 || counted > 0)
        pass->end = cluster + 1;
    if (refcount != counted)
        mismatch(pass, cluster, refcount, counted);
}

// Returns true when all refcounts of a group agree, which nearly all groups do.
static bool group_agrees(struct check_pass *pass, uint64_t cluster, const uint8_t *stored,
                         uint64_t index)
{
    static const uint8_t zeros[GROUP * 8];
    unsigned order = pass->header.refcount_order;
    size_t bytes = (size_t)(GROUP / 8) << order;
    const uint8_t *at = stored == NULL ? zeros : stored + (index << order) / 8;
    uint64_t word;

    if (!counts_word(&pass->counted, cluster, &word))
        return false;
    if (word == 0)
        return stored == NULL || memcmp(at, zeros, bytes) == 0;
    if (word != UINT64_MAX || memcmp(at, pass->ones, bytes) != 0)
        return false;
    pass->end = cluster + GROUP;
    return true;
}

static int compare(struct check_pass *pass, uint64_t cluster, uint64_t n, const uint8_t *stored)
{
    for (uint64_t i = 0; i < n;) {
        if (n - i >= GROUP && group_agrees(pass, cluster + i, stored, i)) {
            i += GROUP;
            continue;
        }
        uint64_t end = n - i < GROUP ? n : i + GROUP;
        for (; i < end; i++)
            compare_one(pass, cluster + i, stored, i);
    }
    return 0;
}

// Reports metadata that shares a cluster with something else, even if its refcount agrees.
static void check_overlaps(struct check_pass *pass)
{
    for (uint64_t i = counts_next(&pass->fixed, 0); i < pass->clusters;
         i = counts_next(&pass->fixed, i + 1)) {
        if (counts_get(&pass->counted, i) == 1)
            continue;
        pass->result.corruptions++;
        check_say(pass, "ERROR cluster %" PRIu64 " holds metadata and is used %" PRIu32 " times", i,
                  counts_get(&pass->counted, i));
    }
    for (uint64_t i = counts_next(&pass->l2_tables, 0); i < pass->clusters;
         i = counts_next(&pass->l2_tables, i + 1)) {
        // No two parts of the disk share a table: one of the entries is wrong.
        if (counts_get(&pass->copied, i) + counts_get(&pass->not_copied, i) > 1 &&
            counts_get(&pass->l2_tables, i) > 1)
            pass->found |= CHECK_FOUND_HIDDEN;
        if (counts_get(&pass->counted, i) == counts_get(&pass->l2_tables, i))
            continue;
        pass->result.corruptions++;
        check_say(pass, "ERROR cluster %" PRIu64 " holds an L2 table and something else", i);
    }
    for (uint64_t i = 0; i < pass->block_count; i++) {
        uint64_t cluster = pass->blocks[i] >> pass->header.cluster_bits;
        if (pass->blocks[i] != 0 && counts_get(&pass->counted, cluster) != 1)
            pass->found |= CHECK_FOUND_BROKEN_STRUCTURE;
    }
}

int check_pass_compare(struct check_pass *pass, struct error *err)
{
    unsigned order = pass->header.refcount_order;

    assert(pass->stage == CHECK_COUNTED);
    pass->ones = calloc(GROUP / 8, (size_t)1 << order);
    if (pass->ones == NULL)
        return error_set(err, ENOMEM, "'%s': no memory to check it", pass->file->name);
    for (uint64_t i = 0; i < GROUP; i++)
        refcount_array_set(pass->ones, order, i, 1);

    int ret = check_scan_refcounts(pass, compare, err);
    if (ret < 0)
        return ret;
    say_mismatch(pass);
    check_overlaps(pass);
    for (uint64_t i = 0; i < pass->header.refcount_table_clusters; i++) {
        uint64_t cluster = (pass->header.refcount_table_offset >> pass->header.cluster_bits) + i;
        if (cluster < pass->clusters && counts_get(&pass->counted, cluster) != 1)
            pass->found |= CHECK_FOUND_BROKEN_STRUCTURE;
    }
    return 0;
}
