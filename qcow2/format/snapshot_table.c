// SPDX-License-Identifier: Apache-2.0
#include "qcow2/format/snapshot_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/format/format.h"

// Bytes that are read at once: most tables fit.
#define READ_STEP (64u << 10)

// The part of the table that was read.
struct window {
    struct file *file;
    uint64_t offset; // of the table in the file
    // Most bytes of the table: its own limit, or those up to the end of the file.
    uint64_t limit;
    uint8_t *bytes;
    uint64_t length;
};

static int snapshot_table_broken(struct error *err, const struct file *file, const char *what)
{
    return error_set(err, EINVAL, "'%s': broken snapshot table: %s; restore it from a backup",
                     file->name, what);
}

// Makes the first length bytes of the table available.
static int window_extend(struct window *w, uint64_t length, struct error *err)
{
    if (length <= w->length)
        return 0;
    if (length > w->limit)
        return snapshot_table_broken(err, w->file, "it exceeds 64 MiB or the end of the file");

    uint64_t target = length > w->length + READ_STEP ? length : w->length + READ_STEP;
    if (target < 2 * w->length)
        target = 2 * w->length;
    if (target > w->limit)
        target = w->limit;
    uint8_t *bytes = realloc(w->bytes, target);
    if (bytes == NULL)
        return error_set(err, ENOMEM, "'%s': no memory for the snapshot table", w->file->name);
    w->bytes = bytes;
    int ret =
        file_read_blocking(w->file, bytes + w->length, w->offset + w->length, target - w->length);
    if (ret < 0)
        return error_set(err, -ret, "'%s': cannot read the snapshot table: %s", w->file->name,
                         strerror(-ret));
    w->length = target;
    return 0;
}

// Lengths of the parts of one entry, in bytes.
struct entry_lengths {
    uint32_t extra;
    uint16_t id;
    uint16_t name;
};

static struct entry_lengths entry_lengths(const uint8_t *p)
{
    return (struct entry_lengths){.extra = format_get32(p + FORMAT_SNAPSHOT_EXTRA_LENGTH),
                                  .id = format_get16(p + FORMAT_SNAPSHOT_ID_LENGTH),
                                  .name = format_get16(p + FORMAT_SNAPSHOT_NAME_LENGTH)};
}

// Returns the bytes of the entry before its padding.
static uint64_t snapshot_table_entry_bytes(const struct entry_lengths *lengths)
{
    return (uint64_t)FORMAT_SNAPSHOT_BYTES + lengths->extra + lengths->id + lengths->name;
}

static uint64_t padded(uint64_t bytes)
{
    return (bytes + 7) & ~7ull;
}

// Reads until all entries are in the window. *bytes is the size of the table.
static int read_entries(struct window *w, uint32_t count, uint64_t *bytes, struct error *err)
{
    uint64_t pos = 0;

    for (uint32_t i = 0; i < count; i++) {
        int ret = window_extend(w, pos + FORMAT_SNAPSHOT_BYTES, err);
        if (ret < 0)
            return ret;

        struct entry_lengths lengths = entry_lengths(w->bytes + pos);
        if (lengths.extra > SNAPSHOT_EXTRA_DATA_MAX)
            return snapshot_table_broken(err, w->file,
                                         "extra data of a snapshot is longer than 1024 bytes");
        ret = window_extend(w, pos + snapshot_table_entry_bytes(&lengths), err);
        if (ret < 0)
            return ret;
        pos += padded(snapshot_table_entry_bytes(&lengths));
    }
    *bytes = pos;
    return 0;
}

static void decode_entry(uint8_t *p, const struct header *header, struct snapshot *s)
{
    struct entry_lengths lengths = entry_lengths(p);
    const uint8_t *extra = p + FORMAT_SNAPSHOT_BYTES;

    s->l1_offset = format_get64(p + FORMAT_SNAPSHOT_L1_OFFSET);
    s->l1_size = format_get32(p + FORMAT_SNAPSHOT_L1_SIZE);
    s->l1_valid = s->l1_offset % header_cluster_size(header) == 0 &&
                  s->l1_size <= HEADER_L1_BYTES_MAX / FORMAT_ENTRY_BYTES &&
                  s->l1_offset <= HEADER_OFFSET_LIMIT - HEADER_L1_BYTES_MAX;
    s->seconds = format_get32(p + FORMAT_SNAPSHOT_SECONDS);
    s->nanoseconds = format_get32(p + FORMAT_SNAPSHOT_NANOSECONDS);
    s->vm_clock = format_get64(p + FORMAT_SNAPSHOT_VM_CLOCK);
    // Writers that add no extra data have a 32-bit size of the VM state, and never resized the
    // disk.
    s->vm_state_size = lengths.extra >= FORMAT_SNAPSHOT_EXTRA_VM_STATE + 8
                           ? format_get64(extra + FORMAT_SNAPSHOT_EXTRA_VM_STATE)
                           : format_get32(p + FORMAT_SNAPSHOT_VM_STATE_SIZE);
    s->disk_size = lengths.extra >= FORMAT_SNAPSHOT_EXTRA_DISK_SIZE + 8
                       ? format_get64(extra + FORMAT_SNAPSHOT_EXTRA_DISK_SIZE)
                       : header->size;
    s->icount = lengths.extra >= FORMAT_SNAPSHOT_EXTRA_ICOUNT + 8
                    ? format_get64(extra + FORMAT_SNAPSHOT_EXTRA_ICOUNT)
                    : SNAPSHOT_ICOUNT_NONE;

    // Both strings are terminated in place. They move left over decoded fields, by one byte for
    // each terminator behind them.
    char *id = (char *)p + FORMAT_SNAPSHOT_BYTES + lengths.extra;
    char *name = id + lengths.id;
    memmove(id - 2, id, lengths.id);
    id[lengths.id - 2] = '\0';
    memmove(name - 1, name, lengths.name);
    name[lengths.name - 1] = '\0';
    s->id = id - 2;
    s->name = name - 1;
}

int snapshot_table_read(struct file *file, const struct header *header,
                        struct snapshot_table *table, struct error *err)
{
    struct window w = {
        .file = file, .offset = header->snapshot_offset, .limit = HEADER_SNAPSHOT_TABLE_BYTES_MAX};

    memset(table, 0, sizeof(*table));
    if (header->snapshot_count == 0)
        return 0;

    int64_t size = file_size(file);
    if (size < 0)
        return error_set(err, (int)-size, "'%s': cannot tell its size: %s", file->name,
                         strerror((int)-size));
    if ((uint64_t)size <= w.offset)
        return snapshot_table_broken(err, file, "it lies beyond the end of the file");
    if (w.limit > (uint64_t)size - w.offset)
        w.limit = (uint64_t)size - w.offset;

    int ret = read_entries(&w, header->snapshot_count, &table->bytes, err);
    struct snapshot *snapshots = NULL;
    if (ret == 0) {
        snapshots = calloc(header->snapshot_count, sizeof(*snapshots));
        if (snapshots == NULL)
            ret = error_set(err, ENOMEM, "'%s': no memory for the snapshot table", file->name);
    }
    if (ret < 0) {
        free(w.bytes);
        table->bytes = 0;
        return ret;
    }
    uint8_t *entry = w.bytes;
    for (uint32_t i = 0; i < header->snapshot_count; i++) {
        struct entry_lengths lengths = entry_lengths(entry);
        decode_entry(entry, header, &snapshots[i]);
        entry += padded(snapshot_table_entry_bytes(&lengths));
    }
    table->count = header->snapshot_count;
    table->snapshots = snapshots;
    table->strings = w.bytes;
    return 0;
}

void snapshot_table_free(struct snapshot_table *table)
{
    free(table->snapshots);
    free(table->strings);
    memset(table, 0, sizeof(*table));
}
