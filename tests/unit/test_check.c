// SPDX-License-Identifier: Apache-2.0
// test_check.c: repair by qcow2/offline/check.h, cut at every point: the mapping stays, no state is
// more dangerous than before, and another repair finishes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/offline/check.h"
#include "qcow2/offline/create.h"
#include "qcow2/format/format.h"
#include "qcow2/format/header.h"
#include "qcow2/format/refcount_array.h"

#define FILE_BYTES_MAX (2u << 20)
#define LOG_MAX 4096
#define GUEST_CLUSTERS 150
#define SECTOR 512u

// ---- A file in memory that remembers what was done to it ----------------------------------------

struct logged {
    enum file_io_kind kind; // FILE_WRITE, FILE_TRUNCATE or FILE_DATASYNC
    uint64_t offset;
    uint64_t length;
    uint8_t *bytes;
};

struct disk {
    struct file file;
    struct runq runq;
    uint8_t *bytes; // FILE_BYTES_MAX of them
    uint64_t size;
    struct logged log[LOG_MAX];
    size_t logged;
};

static struct disk *disk_of(struct file *file)
{
    return (struct disk *)((char *)file - offsetof(struct disk, file));
}

static void apply_write(struct disk *d, uint64_t offset, const uint8_t *bytes, uint64_t length)
{
    assert_true(offset + length <= FILE_BYTES_MAX);
    memcpy(d->bytes + offset, bytes, length);
    if (offset + length > d->size)
        d->size = offset + length;
}

static void apply_truncate(struct disk *d, uint64_t size)
{
    assert_true(size <= FILE_BYTES_MAX);
    if (size < d->size)
        memset(d->bytes + size, 0, d->size - size);
    d->size = size;
}

static void disk_submit(struct file *file, struct file_io *io)
{
    struct disk *d = disk_of(file);

    if (io->kind == FILE_READ) {
        uint64_t pos = io->offset;
        for (int i = 0; i < io->iovcnt; pos += io->iov[i++].iov_len) {
            size_t length = io->iov[i].iov_len;
            size_t there = pos >= d->size ? 0 : d->size - pos < length ? d->size - pos : length;
            uint8_t *to = io->iov[i].iov_base;

            memcpy(to, d->bytes + (there > 0 ? pos : 0), there);
            memset(to + there, 0, length - there);
        }
        file_io_complete(io, 0);
        return;
    }
    if (io->kind == FILE_EXTENTS) {
        file_io_complete(io, -EOPNOTSUPP);
        return;
    }
    assert_true(d->logged < LOG_MAX);
    struct logged *entry = &d->log[d->logged++];
    *entry = (struct logged){.kind = io->kind, .offset = io->offset, .length = io->length};
    if (io->kind == FILE_WRITE) {
        assert_int_equal(io->iovcnt, 1);
        entry->bytes = malloc(io->length);
        assert_non_null(entry->bytes);
        memcpy(entry->bytes, io->iov[0].iov_base, io->length);
        apply_write(d, io->offset, entry->bytes, io->length);
    } else if (io->kind == FILE_TRUNCATE) {
        apply_truncate(d, io->offset);
    } else {
        assert_int_equal(io->kind, FILE_DATASYNC);
    }
    file_io_complete(io, 0);
}

static void disk_wait(struct file *file)
{
    (void)file;
    fail_msg("%s", "everything has completed already");
}

static int64_t disk_size(struct file *file)
{
    return (int64_t)disk_of(file)->size;
}

static const struct file_ops disk_ops = {
    .submit = disk_submit, .wait = disk_wait, .size = disk_size};

static struct disk *disk_new(void)
{
    static char name[] = "disk";
    struct disk *d = calloc(1, sizeof(*d));

    assert_non_null(d);
    d->bytes = calloc(1, FILE_BYTES_MAX);
    assert_non_null(d->bytes);
    runq_init(&d->runq);
    d->file =
        (struct file){.ops = &disk_ops, .runq = &d->runq, .name = name, .fresh_is_zero = true};
    return d;
}

static void forget_log(struct disk *d)
{
    for (size_t i = 0; i < d->logged; i++)
        free(d->log[i].bytes);
    d->logged = 0;
}

static void disk_free(struct disk *d)
{
    forget_log(d);
    free(d->bytes);
    free(d);
}

static struct disk *disk_copy(const struct disk *from)
{
    struct disk *d = disk_new();

    memcpy(d->bytes, from->bytes, FILE_BYTES_MAX);
    d->size = from->size;
    return d;
}

// ---- Power cuts ---------------------------------------------------------------------------------

static uint64_t seed;

static uint64_t draw(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % below;
}

// The disk after a cut behind the first count operations of log. It has everything that the last
// barrier covers; each later write is there, is not, or is torn between sectors.
static struct disk *cut(const struct disk *before, const struct disk *log, size_t count)
{
    struct disk *d = disk_copy(before);
    size_t durable = 0;

    for (size_t i = 0; i < count; i++) {
        if (log->log[i].kind == FILE_DATASYNC)
            durable = i;
    }
    for (size_t i = 0; i < count; i++) {
        const struct logged *entry = &log->log[i];
        uint64_t fate = i < durable ? 0 : draw(3); // kept, dropped, torn

        if (entry->kind == FILE_TRUNCATE && fate == 0)
            apply_truncate(d, entry->offset);
        if (entry->kind != FILE_WRITE || fate == 1)
            continue;
        for (uint64_t at = 0; at < entry->length;) {
            uint64_t n = SECTOR - (entry->offset + at) % SECTOR;
            if (n > entry->length - at)
                n = entry->length - at;
            if (fate == 0 || draw(2) == 0)
                apply_write(d, entry->offset + at, entry->bytes + at, n);
            at += n;
        }
    }
    return d;
}

// ---- Images -------------------------------------------------------------------------------------

struct shape {
    unsigned cluster_bits;
    unsigned refcount_order;
    unsigned version;
};

static struct header read_header(struct disk *d)
{
    struct header h;
    struct error err;

    if (header_read_any(&d->file, &h, &err) < 0)
        fail_msg("%s", err.text);
    return h;
}

static struct disk *make_image(const struct shape *shape)
{
    struct disk *d = disk_new();
    struct create_options options = {.size = (uint64_t)GUEST_CLUSTERS << shape->cluster_bits,
                                     .version = shape->version,
                                     .cluster_bits = shape->cluster_bits,
                                     .refcount_order = shape->refcount_order,
                                     .lazy_refcounts = shape->version == 3,
                                     .preallocation = CREATE_PREALLOCATE_METADATA};
    struct error err;

    if (create_image(&d->file, &options, &err) < 0)
        fail_msg("%s", err.text);
    forget_log(d);
    return d;
}

// Returns the place of the entry of a guest cluster.
static uint8_t *entry_of(struct disk *d, uint64_t guest_cluster)
{
    struct header h = read_header(d);
    uint64_t per_table = header_cluster_size(&h) / FORMAT_ENTRY_BYTES;
    const uint8_t *l1 = d->bytes + h.l1_offset + guest_cluster / per_table * FORMAT_ENTRY_BYTES;
    uint64_t table = format_get64(l1) & FORMAT_L1_OFFSET_MASK;

    return d->bytes + table + guest_cluster % per_table * FORMAT_ENTRY_BYTES;
}

static uint64_t host_of(struct disk *d, uint64_t guest_cluster)
{
    return format_get64(entry_of(d, guest_cluster)) & FORMAT_L2_OFFSET_MASK;
}

// The refcount block that holds the refcount of a host cluster, and its index there.
static uint8_t *block_of(struct disk *d, uint64_t cluster, uint64_t *index)
{
    struct header h = read_header(d);
    uint64_t per_block = header_cluster_size(&h) * 8 >> h.refcount_order;
    const uint8_t *entry =
        d->bytes + h.refcount_table_offset + cluster / per_block * FORMAT_ENTRY_BYTES;
    uint64_t block = format_get64(entry);

    *index = cluster % per_block;
    return block == 0 || block >= d->size ? NULL : d->bytes + block;
}

static uint64_t refcount_of(struct disk *d, uint64_t cluster)
{
    struct header h = read_header(d);
    uint64_t index;
    const uint8_t *block = block_of(d, cluster, &index);

    return block == NULL ? 0 : refcount_array_get(block, h.refcount_order, index);
}

static void set_refcount(struct disk *d, uint64_t cluster, uint64_t count)
{
    struct header h = read_header(d);
    uint64_t index;
    uint8_t *block = block_of(d, cluster, &index);

    assert_non_null(block);
    refcount_array_set(block, h.refcount_order, index, count);
}

// ---- Damages ------------------------------------------------------------------------------------

// Refcounts as a crash leaves them: some never written.
static void forget_refcounts(struct disk *d)
{
    struct header h = read_header(d);

    for (uint64_t i = 20; i < 60; i++)
        set_refcount(d, host_of(d, i) >> h.cluster_bits, 0);
    if (h.version == 3)
        format_put64(d->bytes + FORMAT_HEADER_INCOMPATIBLE, HEADER_INCOMPATIBLE_DIRTY);
}

static void leak_clusters(struct disk *d)
{
    for (uint64_t i = 30; i < 40; i++)
        format_put64(entry_of(d, i), 0);
}

static void flip_flags(struct disk *d)
{
    for (uint64_t i = 0; i < GUEST_CLUSTERS; i += 7)
        format_put64(entry_of(d, i), format_get64(entry_of(d, i)) & ~FORMAT_COPIED);
}

// Two guest clusters with one host cluster whose refcount is one. Another one leaks.
static void share_clusters(struct disk *d)
{
    format_put64(entry_of(d, 11), format_get64(entry_of(d, 10)));
    format_put64(entry_of(d, 90), format_get64(entry_of(d, 91)));
}

static void lose_blocks(struct disk *d)
{
    struct header h = read_header(d);

    format_put64(d->bytes + h.refcount_table_offset, 0);
}

static void break_table(struct disk *d)
{
    struct header h = read_header(d);

    // A block over the L1 table, one that is misaligned, one that is far away.
    format_put64(d->bytes + h.refcount_table_offset, h.l1_offset);
    format_put64(d->bytes + h.refcount_table_offset + 8, header_cluster_size(&h) + 8);
    format_put64(d->bytes + h.refcount_table_offset + 16, 1ull << 50);
}

static void lose_growth(struct disk *d)
{
    struct header h = read_header(d);

    format_put64(d->bytes + FORMAT_HEADER_INCOMPATIBLE, HEADER_INCOMPATIBLE_DIRTY);
    apply_truncate(d, d->size - (20ull << h.cluster_bits));
}

struct damage {
    const char *name;
    void (*make)(struct disk *d);
    bool version_3_only; // it needs the dirty bit
    unsigned least_refcount_order;
};

static const struct damage damages[] = {
    {"forgotten refcounts", forget_refcounts, false, 0},
    {"leaks", leak_clusters, false, 0},
    {"flags", flip_flags, false, 0},
    {"shared clusters", share_clusters, false, 1},
    {"lost blocks", lose_blocks, false, 0},
    {"broken refcount table", break_table, false, 0},
    {"lost growth", lose_growth, true, 0},
};

// ---- Judging ------------------------------------------------------------------------------------

static struct check_result check(struct disk *d, enum check_repair repair)
{
    struct check_options options = {.repair = repair};
    struct check_result result;
    struct error err;

    if (check_image(&d->file, &options, &result, &err) < 0)
        fail_msg("%s", err.text);
    return result;
}

static uint64_t references_of(const uint64_t hosts[GUEST_CLUSTERS], uint64_t host)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < GUEST_CLUSTERS; i++)
        n += hosts[i] == host;
    return n;
}

// d maps the clusters that before maps, and no state is more dangerous: a refcount that was high
// enough still is, and a cluster with several references of which a copy on write would be made has
// the refcount that keeps it from being freed.
static void assert_mapping_kept(struct disk *before, struct disk *d)
{
    struct header h = read_header(d);
    uint64_t hosts[GUEST_CLUSTERS];

    for (uint64_t i = 0; i < GUEST_CLUSTERS; i++)
        hosts[i] = host_of(before, i);
    for (uint64_t i = 0; i < GUEST_CLUSTERS; i++) {
        uint64_t old = format_get64(entry_of(before, i));
        uint64_t new = format_get64(entry_of(d, i));

        assert_int_equal(old & ~FORMAT_COPIED, new & ~FORMAT_COPIED);
        uint64_t host = hosts[i];
        uint64_t needed = host == 0 ? 0 : references_of(hosts, host);
        uint64_t had = refcount_of(before, host >> h.cluster_bits);
        assert_true(refcount_of(d, host >> h.cluster_bits) >= (had < needed ? had : needed));
        if (old & FORMAT_COPIED && !(new &FORMAT_COPIED))
            assert_true(refcount_of(d, host_of(d, i) >> h.cluster_bits) == 2);
    }
}

static void assert_repaired(struct disk *d)
{
    check(d, CHECK_REPAIR_ALL);
    struct check_result after = check(d, CHECK_REPORT);

    assert_int_equal(after.corruptions, 0);
    assert_int_equal(after.leaks, 0);
    assert_int_equal(read_header(d).incompatible, 0);
}

static void repair_is_safe(const struct shape *shape, const struct damage *damage)
{
    struct disk *before = make_image(shape);
    assert_int_equal(check(before, CHECK_REPORT).corruptions, 0);
    damage->make(before);
    struct check_result found = check(before, CHECK_REPORT);
    if (found.corruptions + found.leaks == 0)
        fail_msg("%s: nothing is found", damage->name);
    assert_int_equal(before->logged, 0); // a check that repairs nothing writes nothing

    struct disk *repaired = disk_copy(before);
    struct check_result result = check(repaired, CHECK_REPAIR_ALL);
    if (result.corruptions != 0 || result.leaks != 0)
        fail_msg("%s: cluster_bits %u refcount_order %u: not repaired", damage->name,
                 shape->cluster_bits, shape->refcount_order);
    assert_int_equal(result.corruptions_fixed, found.corruptions);
    assert_true(repaired->logged > 1);

    for (size_t count = 0; count <= repaired->logged; count++) {
        for (unsigned again = 0; again < 4; again++) {
            struct disk *d = cut(before, repaired, count);
            assert_mapping_kept(before, d);
            assert_repaired(d);
            assert_mapping_kept(before, d);
            disk_free(d);
        }
    }
    disk_free(repaired);
    disk_free(before);
}

static void repair_may_be_cut_anywhere(void **state)
{
    static const struct shape shapes[] = {{9, 4, 3}, {9, 0, 3}, {9, 6, 3}, {12, 4, 3}, {12, 4, 2}};

    (void)state;
    seed = 88172645463325252;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        for (size_t k = 0; k < sizeof(damages) / sizeof(damages[0]); k++) {
            if (shapes[i].version < 3 && damages[k].version_3_only)
                continue;
            if (shapes[i].refcount_order < damages[k].least_refcount_order)
                continue;
            repair_is_safe(&shapes[i], &damages[k]);
        }
    }
}

static void repairing_leaks_leaves_the_rest(void **state)
{
    struct shape shape = {.cluster_bits = 9, .refcount_order = 4, .version = 3};
    struct disk *d = make_image(&shape);

    (void)state;
    leak_clusters(d);
    flip_flags(d);
    struct check_result found = check(d, CHECK_REPORT);
    assert_int_equal(found.leaks, 10);
    assert_true(found.corruptions > 0);
    struct check_result result = check(d, CHECK_REPAIR_LEAKS);
    assert_int_equal(result.leaks, 0);
    assert_int_equal(result.leaks_fixed, 10);
    assert_int_equal(result.corruptions, found.corruptions);
    assert_int_equal(result.corruptions_fixed, 0);
    disk_free(d);
}

static void counts_that_do_not_fit_are_refused(void **state)
{
    struct shape shape = {.cluster_bits = 9, .refcount_order = 0, .version = 3};
    struct disk *d = make_image(&shape);
    struct check_options options = {.repair = CHECK_REPAIR_ALL};
    struct check_result result;
    struct error err;

    (void)state;
    share_clusters(d); // two references, and refcounts of one bit
    lose_blocks(d);
    assert_int_equal(check_image(&d->file, &options, &result, &err), -ERANGE);
    assert_int_equal(d->logged, 0);
    disk_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(repair_may_be_cut_anywhere),
        cmocka_unit_test(repairing_leaks_leaves_the_rest),
        cmocka_unit_test(counts_that_do_not_fit_are_refused),
    };

    return cmocka_run_group_tests_name("check", tests, NULL, NULL);
}
