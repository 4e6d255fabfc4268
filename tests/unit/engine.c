// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/base/cluster_set.h"
#include "qcow2/durable/sync_state.h"
#include "qcow2/format/format.h"
#include "qcow2/format/refcount_array.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/mapping/guard.h"
#include "qcow2/offline/check.h"
#include "qcow2/space/refcount.h"

#define PAYLOAD_MAX (4u << 20)

const struct create_options engine_large = {.size = 64u << 20,
                                            .version = 3,
                                            .cluster_bits = 16,
                                            .refcount_order = 4,
                                            .lazy_refcounts = true};
const struct create_options engine_small = {
    .size = 4u << 20, .version = 3, .cluster_bits = 9, .refcount_order = 4};

static unsigned char payload[PAYLOAD_MAX];
// Buffer of all reads that engine_start() begins: a write beside them must not send bytes that a
// read has not filled yet.
static unsigned char read_buffer[PAYLOAD_MAX];

// ---- Names of requests --------------------------------------------------------------------------

// Names the structure of the image at an offset of the file.
static const char *structure_at(const struct image *image, uint64_t offset)
{
    const struct header *h = &image->header;
    const struct refcounts *rc = image->refcounts;
    const struct refcount_write *rw = &image->sync->refcounts;
    uint64_t cluster = offset >> h->cluster_bits;

    if (cluster == 0)
        return "header";
    if (offset >= h->l1_offset && offset < h->l1_offset + h->l1_size * 8ull)
        return "l1";
    if (cluster - (h->refcount_table_offset >> h->cluster_bits) < h->refcount_table_clusters ||
        (rw->moving && cluster - rw->table_first < rw->table_clusters))
        return "table";
    for (uint64_t i = 0; i < rc->table_size; i++) {
        if (rc->table[i] != 0 && rc->table[i] >> h->cluster_bits == cluster)
            return "block";
    }
    for (uint64_t i = 0; i < image->l1.size; i++) {
        uint64_t table = image->l1.entries[i] & FORMAT_L1_OFFSET_MASK;

        if (table != 0 && table >> h->cluster_bits == cluster)
            return "l2";
    }
    // A table that is being copied is guarded before it is linked.
    return cluster_set_has(&image->guard->tables, cluster) ? "l2" : "data";
}

static const char *name_of(const struct engine *e, const struct file_io *io)
{
    static char name[32];

    switch (io->kind) {
    case FILE_READ:
        snprintf(name, sizeof(name), "read-%s", structure_at(e->image, io->offset));
        return name;
    case FILE_WRITE:
        return structure_at(e->image, io->offset);
    case FILE_DATASYNC:
        return "barrier";
    case FILE_ZERO:
        return "zero";
    case FILE_PUNCH:
        return "punch";
    case FILE_ALLOCATE:
        return "reserve";
    case FILE_TRUNCATE:
        return "cut";
    case FILE_EXTENTS:
        return "extents";
    }
    return "?";
}

static void observe(void *context, const struct file_io *io, bool ended)
{
    struct engine *e = context;
    size_t length = strlen(e->order);

    if (!e->image)
        return;
    snprintf(e->order + length, sizeof(e->order) - length, "%s%s", ended || length == 0 ? "" : " ",
             ended ? "." : name_of(e, io));
}

void engine_watch(struct engine *e)
{
    e->order[0] = '\0';
}

unsigned engine_count(const struct engine *e, const char *name)
{
    size_t length = strlen(name);
    unsigned count = 0;

    for (const char *at = e->order; (at = strstr(at, name)) != NULL; at += length) {
        bool begins = at == e->order || at[-1] == ' ';

        count += begins && (at[length] == '\0' || at[length] == ' ' || at[length] == '.');
    }
    return count;
}

// ---- Life of the image --------------------------------------------------------------------------

static void open_only(struct engine *e, const struct image_options *options)
{
    e->image = scripted_image_open_only(e->disk, options);
    e->disk->observe = observe;
    e->disk->observe_context = e;
    engine_watch(e);
}

void engine_open(struct engine *e, const struct image_options *options)
{
    open_only(e, options);
    engine_run(e);
    engine_watch(e);
}

void engine_begin_with(struct engine *e, const struct create_options *create,
                       const struct image_options *options)
{
    *e = (struct engine){.disk = scripted_file_new()};
    scripted_file_create(e->disk, create);
    engine_open(e, options);
}

void engine_begin(struct engine *e, const struct create_options *create)
{
    engine_begin_with(e, create,
                      &(struct image_options){.format = IMAGE_FORMAT_QCOW2, .unmap = true});
}

static void close_image(struct engine *e)
{
    e->disk->observe = NULL;
    image_close(e->image);
    e->image = NULL;
}

void engine_free(struct engine *e)
{
    if (e->image)
        close_image(e);
    scripted_file_free(e->disk);
}

uint64_t engine_faults(struct engine *e)
{
    struct check_options options = {.repair = CHECK_REPORT};
    struct check_result result;
    struct error err;

    assert_int_equal(check_image(&e->disk->file, &options, &result, &err), 0);
    return result.corruptions + result.leaks;
}

void engine_end_image(struct engine *e)
{
    struct error err = {0};

    if (image_finish(e->image, &err) < 0)
        fail_msg("%s", err.text);
    close_image(e);
    assert_int_equal(engine_faults(e), 0);
}

void engine_end(struct engine *e)
{
    engine_end_image(e);
    engine_free(e);
}

void engine_crash(struct engine *e, const struct image_options *options)
{
    close_image(e);
    engine_open(e, options);
}

void engine_crash_only(struct engine *e, const struct image_options *options)
{
    close_image(e);
    open_only(e, options);
}

// Adds 1 to the refcount of a cluster on disk; all refcounts are in the first block.
static void share(uint8_t *bytes, uint64_t block, uint64_t cluster)
{
    uint64_t count = refcount_array_get(bytes + block, 4, cluster);

    refcount_array_set(bytes + block, 4, cluster, count + 1);
}

// Shares the table's entries with a snapshot: each referenced cluster gets one reference more.
static void share_l2(uint8_t *bytes, uint64_t block, uint64_t table, unsigned bits)
{
    for (uint64_t at = table; at < table + (1u << bits); at += 8) {
        uint64_t entry = format_get64(bytes + at);

        if (entry == 0)
            continue;
        assert_int_equal(entry & FORMAT_COMPRESSED, 0);
        share(bytes, block, (entry & FORMAT_L2_OFFSET_MASK) >> bits);
        format_put64(bytes + at, entry & ~FORMAT_COPIED);
    }
}

// Appends the snapshot's L1 table and the snapshot table, a cluster each, to the file.
static void forge_snapshot(struct scripted_file *disk, const struct header *h)
{
    uint8_t *bytes = disk->bytes;
    unsigned bits = h->cluster_bits;
    uint64_t l1 = (disk->size + (1u << bits) - 1) >> bits << bits;
    uint64_t l1_bytes = h->l1_size * 8ull;
    uint64_t table = l1 + ((l1_bytes + (1u << bits) - 1) >> bits << bits);
    uint64_t block = format_get64(bytes + h->refcount_table_offset);

    for (uint64_t i = 0; i < h->l1_size; i++) {
        uint64_t entry = format_get64(bytes + h->l1_offset + i * 8);
        uint64_t offset = entry & FORMAT_L1_OFFSET_MASK;

        if (offset == 0)
            continue;
        share(bytes, block, offset >> bits);
        share_l2(bytes, block, offset, bits);
        format_put64(bytes + h->l1_offset + i * 8, offset);
    }
    memcpy(bytes + l1, bytes + h->l1_offset, l1_bytes);
    format_put64(bytes + table + FORMAT_SNAPSHOT_L1_OFFSET, l1);
    format_put32(bytes + table + FORMAT_SNAPSHOT_L1_SIZE, h->l1_size);
    format_put16(bytes + table + FORMAT_SNAPSHOT_ID_LENGTH, 1);
    format_put32(bytes + table + FORMAT_SNAPSHOT_EXTRA_LENGTH, 24);
    format_put64(bytes + table + FORMAT_SNAPSHOT_BYTES + FORMAT_SNAPSHOT_EXTRA_DISK_SIZE, h->size);
    bytes[table + FORMAT_SNAPSHOT_BYTES + 24] = '1';
    disk->size = table + (1u << bits);
    for (uint64_t cluster = l1 >> bits; cluster < disk->size >> bits; cluster++)
        share(bytes, block, cluster);
    format_put32(bytes + FORMAT_HEADER_SNAPSHOT_COUNT, 1);
    format_put64(bytes + FORMAT_HEADER_SNAPSHOT_OFFSET, table);
}

void engine_snapshot(struct engine *e)
{
    struct image_options options = e->image->options;
    struct header header = e->image->header;

    engine_end_image(e);
    forge_snapshot(e->disk, &header);
    assert_int_equal(engine_faults(e), 0);
    engine_open(e, &options);
}

// Gives the image a bitmap: its directory and its table, a cluster each.
void engine_add_bitmap(struct engine *e)
{
    uint8_t *bytes = e->disk->bytes;
    uint64_t cluster = 65536;
    uint64_t directory = (e->disk->size + cluster - 1) / cluster * cluster;
    uint64_t table = directory + cluster;
    uint64_t block = format_get64(bytes + e->image->header.refcount_table_offset);
    uint8_t *at = bytes + format_get32(bytes + FORMAT_HEADER_LENGTH);

    format_put64(bytes + directory + FORMAT_BITMAP_TABLE_OFFSET, table);
    format_put32(bytes + directory + FORMAT_BITMAP_TABLE_SIZE, 1);
    bytes[directory + 16] = 1;
    bytes[directory + FORMAT_BITMAP_GRANULARITY] = 16;
    format_put16(bytes + directory + FORMAT_BITMAP_NAME_LENGTH, 1);
    bytes[directory + FORMAT_BITMAP_ENTRY_BYTES] = 'b';
    e->disk->size = table + cluster;
    refcount_array_set(bytes + block, 4, directory / cluster, 1);
    refcount_array_set(bytes + block, 4, table / cluster, 1);
    while (format_get32(at) != FORMAT_EXTENSION_END)
        at += FORMAT_EXTENSION_BYTES + (format_get32(at + 4) + 7u) / 8 * 8;
    format_put32(at, FORMAT_EXTENSION_BITMAPS);
    format_put32(at + 4, FORMAT_BITMAPS_EXTENSION_BYTES);
    at += FORMAT_EXTENSION_BYTES;
    format_put32(at + FORMAT_BITMAPS_COUNT, 1);
    format_put64(at + FORMAT_BITMAPS_DIRECTORY_SIZE, 32);
    format_put64(at + FORMAT_BITMAPS_DIRECTORY_OFFSET, directory);
    format_put64(bytes + FORMAT_HEADER_AUTOCLEAR, FORMAT_AUTOCLEAR_BITMAPS);
}

// ---- Requests -----------------------------------------------------------------------------------

int engine_write(struct engine *e, uint64_t offset, uint64_t length, int byte)
{
    assert_true(length <= PAYLOAD_MAX);
    memset(payload, byte, length);
    return scripted_write(e->disk, e->image, payload, offset, length);
}

int engine_do(struct engine *e, enum op_kind kind, unsigned flags, uint64_t offset, uint64_t length)
{
    struct op op = {.kind = kind, .flags = flags, .offset = offset, .length = length};

    if (kind == OP_READ || kind == OP_WRITE)
        op.buf = payload;
    return scripted_op(e->disk, e->image, &op);
}

int engine_flush(struct engine *e)
{
    return engine_do(e, OP_FLUSH, 0, 0, 0);
}

void engine_expect(struct engine *e, uint64_t offset, uint64_t length, int byte)
{
    unsigned char *found = malloc(length);

    assert_non_null(found);
    assert_int_equal(scripted_read(e->disk, e->image, found, offset, length), 0);
    for (uint64_t i = 0; i < length; i++) {
        if (found[i] != byte)
            fail_msg("guest offset %llu: byte %d, not %d", (unsigned long long)(offset + i),
                     found[i], byte);
    }
    free(found);
}

void engine_fill(int byte)
{
    memset(payload, byte, sizeof(payload));
}

static void count_done(struct op *op)
{
    ((struct request *)((char *)op - offsetof(struct request, op)))->done++;
}

void engine_start(struct engine *e, struct request *r, enum op_kind kind, unsigned flags,
                  uint64_t offset, uint64_t length)
{
    *r = (struct request){
        .op = {
            .kind = kind, .flags = flags, .offset = offset, .length = length, .done = count_done}};
    if (kind == OP_READ)
        r->op.buf = read_buffer;
    else if (kind == OP_WRITE)
        r->op.buf = payload;
    op_start(e->image, &r->op);
}

void engine_run(struct engine *e)
{
    scripted_file_run(e->disk);
}

static size_t find(const struct engine *e, const char *name, bool same)
{
    size_t i = 0;

    while (i < e->disk->queued && (strcmp(name_of(e, e->disk->queue[i]), name) == 0) != same)
        i++;
    return i;
}

void engine_hold(struct engine *e, const char *name)
{
    for (;;) {
        scripted_file_turns(e->disk);
        size_t other = find(e, name, false);

        if (other == e->disk->queued)
            return;
        scripted_file_end(e->disk, other, 0);
    }
}

size_t engine_reach(struct engine *e, const char *name)
{
    for (;;) {
        scripted_file_turns(e->disk);
        size_t index = find(e, name, true);

        if (index < e->disk->queued)
            return index;
        if (e->disk->queued == 0)
            fail_msg("no %s after: %s", name, e->order);
        scripted_file_end(e->disk, 0, 0);
    }
}

bool engine_in_flight(const struct engine *e, const char *name)
{
    return find(e, name, true) < e->disk->queued;
}

// ---- What is there ------------------------------------------------------------------------------

uint64_t engine_disk_entry(const struct engine *e, uint64_t cluster)
{
    unsigned l2_bits = e->image->geometry.l2_bits;
    const uint8_t *bytes = e->disk->bytes;
    uint64_t l1 = format_get64(bytes + e->image->header.l1_offset + 8 * (cluster >> l2_bits));
    uint64_t table = l1 & FORMAT_L1_OFFSET_MASK;

    return table ? format_get64(bytes + table + 8 * (cluster & ((1u << l2_bits) - 1))) : 0;
}

uint64_t engine_entry(const struct engine *e, uint64_t cluster)
{
    const struct geometry *g = &e->image->geometry;
    uint64_t table = e->image->l1.entries[cluster >> g->l2_bits] & FORMAT_L1_OFFSET_MASK;
    uint64_t at = 8 * (cluster & ((1u << g->l2_bits) - 1));

    if (table == 0)
        return 0;
    const struct slice *slice =
        cache_peek(e->image->cache, table + at / g->piece_bytes * g->piece_bytes, g->piece_bits);
    assert_non_null(slice);
    return be64toh(slice->entries[at % g->piece_bytes / 8]);
}

uint64_t engine_refcount(const struct engine *e, uint64_t host_offset)
{
    return refcounts_get(e->image->refcounts, host_offset >> e->image->geometry.cluster_bits);
}

bool engine_said(const struct engine *e, const char *text)
{
    for (size_t i = 0; i < e->disk->line_count; i++) {
        if (strstr(e->disk->lines[i], text))
            return true;
    }
    return false;
}
