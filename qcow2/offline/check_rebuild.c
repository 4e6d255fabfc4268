// SPDX-License-Identifier: Apache-2.0
// check_rebuild.c: builds a new refcount table with new blocks from the counts of a pass.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/offline/check_pass.h"
#include "qcow2/format/format.h"
#include "qcow2/format/refcount_array.h"

struct rebuild {
    struct check_pass *pass;
    uint64_t per_block;   // refcounts
    uint64_t *blocks;     // cluster of each new block, 0: none
    uint64_t block_count; // entries of the new table
    uint64_t free;        // nothing below is free
    // Clusters of the file, with those that were added and those that entries point at.
    uint64_t end;
    uint64_t table; // first cluster of the new table
    uint64_t table_clusters;
};

// Takes a cluster that has no references and is not part of the old structure; behind the end of
// the file if there is no other. Returns 0 without memory or room.
static uint64_t take_cluster(struct rebuild *r)
{
    struct counts *counted = &r->pass->counted;

    while (r->free < counted->clusters && counts_get(counted, r->free) != 0)
        r->free++;
    uint64_t cluster = r->free;
    if (cluster >= counted->clusters || counts_add(counted, cluster, 1, 1) < 0)
        return 0;
    if (cluster >= r->end)
        r->end = cluster + 1;
    return cluster;
}

// Gives a block to each range of clusters that has one in use. Returns how many were added, or
// -ENOMEM.
static int64_t add_blocks(struct rebuild *r)
{
    int64_t added = 0;

    for (uint64_t i = 0; i < r->block_count; i++) {
        uint64_t first = i * r->per_block;
        if (r->blocks[i] != 0 || counts_next(&r->pass->counted, first) >= first + r->per_block)
            continue;
        r->blocks[i] = take_cluster(r);
        if (r->blocks[i] == 0)
            return -ENOMEM;
        added++;
    }
    return added;
}

// Returns the first of n adjacent clusters without references. They may reach past the end of the
// file, except on a device.
static uint64_t find_run(const struct rebuild *r, uint64_t n)
{
    const struct counts *counted = &r->pass->counted;
    uint64_t first = r->free;

    for (;;) {
        while (first < counted->clusters && counts_get(counted, first) != 0)
            first++;
        uint64_t used = counts_next(counted, first);
        if (used == counted->clusters || used - first >= n)
            return first;
        first = used;
    }
}

// Decides the place of each part. Blocks may need further blocks for themselves, and so may the
// table, which comes last and in one piece.
static int check_rebuild_place(struct rebuild *r)
{
    uint64_t cluster_size = header_cluster_size(&r->pass->header);
    struct counts *counted = &r->pass->counted;

    r->block_count = (counted->clusters + r->per_block - 1) / r->per_block;
    r->blocks = calloc(r->block_count, sizeof(*r->blocks));
    if (r->blocks == NULL)
        return -ENOMEM;
    int64_t added = add_blocks(r);
    while (added > 0)
        added = add_blocks(r);
    if (added < 0)
        return (int)added;

    // Long enough for the blocks that cover the table itself, which may take one or two more.
    uint64_t reach = (r->end + r->per_block - 1) / r->per_block + 2;
    r->table_clusters = (reach * FORMAT_ENTRY_BYTES + cluster_size - 1) / cluster_size;
    reach += r->table_clusters / r->per_block;
    r->table_clusters = (reach * FORMAT_ENTRY_BYTES + cluster_size - 1) / cluster_size;
    if (r->table_clusters * cluster_size > HEADER_REFCOUNT_TABLE_BYTES_MAX)
        return -EFBIG;
    r->table = find_run(r, r->table_clusters);
    if (counted->clusters - r->table < r->table_clusters)
        return -EFBIG;
    int ret = counts_add(counted, r->table, r->table_clusters, 1);
    if (r->end < r->table + r->table_clusters)
        r->end = r->table + r->table_clusters;
    do {
        added = ret < 0 ? ret : add_blocks(r);
    } while (added > 0);
    if (added < 0)
        return (int)added;
    uint64_t entries = r->table_clusters * cluster_size / FORMAT_ENTRY_BYTES;
    return (r->end - 1) / r->per_block < entries ? 0 : -EFBIG;
}

// Clusters of the old structure are free in the new one.
static int forget_old(struct rebuild *r)
{
    struct check_pass *pass = r->pass;
    unsigned bits = pass->header.cluster_bits;
    int ret = 0;

    for (uint64_t i = 0; i < pass->block_count && ret == 0; i++) {
        uint64_t cluster = pass->blocks[i] >> bits;
        if (pass->blocks[i] != 0)
            ret = counts_set(&pass->counted, cluster, counts_get(&pass->counted, cluster) - 1);
    }
    for (uint64_t i = 0; i < pass->header.refcount_table_clusters && ret == 0; i++) {
        uint64_t cluster = (pass->header.refcount_table_offset >> bits) + i;
        if (cluster < pass->clusters)
            ret = counts_set(&pass->counted, cluster, counts_get(&pass->counted, cluster) - 1);
    }
    return ret;
}

// ---- Where references may be hidden

static int keep_stored(struct check_pass *pass, uint64_t cluster, uint64_t n, const uint8_t *stored)
{
    int ret = 0;

    for (uint64_t i = 0; i < n && ret == 0; i++) {
        uint64_t count =
            stored == NULL ? 1 : refcount_array_get(stored, pass->header.refcount_order, i);
        uint32_t least = count > UINT32_MAX ? UINT32_MAX : count == 0 ? 1 : (uint32_t)count;

        if (counts_get(&pass->counted, cluster + i) < least)
            ret = counts_set(&pass->counted, cluster + i, least);
    }
    return ret;
}

// Counts every cluster of the file as used, with the old refcount if that can be read. The new
// structure then lies behind the end of the file, and the old one stays as a leak.
static int keep_all(struct check_pass *pass, struct error *err)
{
    uint64_t per_block = header_cluster_size(&pass->header) * 8 >> pass->header.refcount_order;
    uint64_t blocks_max = HEADER_REFCOUNT_TABLE_BYTES_MAX / FORMAT_ENTRY_BYTES;

    if (pass->clusters > blocks_max * per_block)
        return -EFBIG;
    for (uint64_t i = 0; i < pass->block_count; i++) {
        if (counts_get(&pass->counted, pass->blocks[i] >> pass->header.cluster_bits) != 1)
            pass->blocks[i] = 0; // something else is there, too
    }
    return check_scan_refcounts(pass, keep_stored, err);
}

// ---- Writing

// Returns true when all counts fit the refcount width.
static bool counts_fit(const struct check_pass *pass)
{
    uint64_t max = refcount_array_max(pass->header.refcount_order);
    const struct counts *counted = &pass->counted;

    for (uint64_t i = counts_next(counted, 0); i < counted->clusters;
         i = counts_next(counted, i + 1)) {
        if (counts_get(counted, i) > max)
            return false;
    }
    return true;
}

static int write_blocks(struct rebuild *r, uint8_t *cluster)
{
    struct check_pass *pass = r->pass;
    size_t cluster_size = (size_t)header_cluster_size(&pass->header);
    unsigned order = pass->header.refcount_order;
    int ret = 0;

    for (uint64_t i = 0; i < r->block_count && ret == 0; i++) {
        if (r->blocks[i] == 0)
            continue;
        memset(cluster, 0, cluster_size);
        for (uint64_t k = 0; k < r->per_block; k++) {
            uint64_t at = i * r->per_block + k;
            if (at >= pass->counted.clusters)
                break;
            refcount_array_set(cluster, order, k, counts_get(&pass->counted, at));
        }
        ret = file_write_blocking(pass->file, cluster, r->blocks[i] << pass->header.cluster_bits,
                                  cluster_size);
    }
    return ret;
}

static int write_table(struct rebuild *r, uint8_t *cluster)
{
    unsigned bits = r->pass->header.cluster_bits;
    uint64_t per_cluster = (1ull << bits) / FORMAT_ENTRY_BYTES;
    int ret = 0;

    for (uint64_t c = 0; c < r->table_clusters && ret == 0; c++) {
        memset(cluster, 0, (size_t)1 << bits);
        for (uint64_t k = 0; k < per_cluster && c * per_cluster + k < r->block_count; k++)
            format_put64(cluster + k * FORMAT_ENTRY_BYTES, r->blocks[c * per_cluster + k] << bits);
        ret =
            file_write_blocking(r->pass->file, cluster, (r->table + c) << bits, (size_t)1 << bits);
    }
    return ret;
}

// Writes the structure, and then makes the header name it.
static int check_rebuild_write_all(struct rebuild *r)
{
    struct check_pass *pass = r->pass;
    uint8_t fields[12];
    uint8_t *cluster = malloc((size_t)header_cluster_size(&pass->header));

    if (cluster == NULL)
        return -ENOMEM;
    int ret = write_blocks(r, cluster);
    if (ret == 0)
        ret = write_table(r, cluster);
    free(cluster);
    if (ret == 0)
        ret = file_do_blocking(pass->file, FILE_DATASYNC, 0, 0);
    format_put64(fields, r->table << pass->header.cluster_bits);
    format_put32(fields + 8, (uint32_t)r->table_clusters);
    if (ret == 0)
        ret = file_write_blocking(pass->file, fields, HEADER_OFFSET_REFCOUNT_TABLE, sizeof(fields));
    if (ret == 0)
        ret = file_do_blocking(pass->file, FILE_DATASYNC, 0, 0);
    return ret;
}

int check_rebuild(struct check_pass *pass, struct error *err)
{
    struct rebuild r = {.pass = pass,
                        .per_block =
                            header_cluster_size(&pass->header) * 8 >> pass->header.refcount_order,
                        .end = pass->clusters};

    if (r.end < pass->beyond_end)
        r.end =
            pass->beyond_end < pass->counted.clusters ? pass->beyond_end : pass->counted.clusters;
    int ret = (pass->found & CHECK_FOUND_HIDDEN) ? keep_all(pass, err) : 0;
    if (ret == 0)
        ret = check_rebuild_place(&r);
    if (ret == 0 && !(pass->found & CHECK_FOUND_HIDDEN))
        ret = forget_old(&r);
    if (ret == 0 && !counts_fit(pass))
        ret = -ERANGE;
    if (ret == 0)
        ret = check_rebuild_write_all(&r);
    free(r.blocks);
    if (ret == -ERANGE)
        return error_set(err, ERANGE,
                         "'%s': clusters are shared more often than its refcounts can count; "
                         "convert it with qemu-img convert",
                         pass->file->name);
    if (ret < 0)
        return error_set(err, -ret,
                         "'%s': its refcounts cannot be rebuilt: %s; it is no worse "
                         "than before",
                         pass->file->name, strerror(-ret));
    return 0;
}
