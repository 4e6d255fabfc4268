// SPDX-License-Identifier: Apache-2.0
#include "qcow2/writable.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/waitq.h"
#include "qcow2/core/dirty_bit.h"
#include "qcow2/core/host.h"
#include "qcow2/core/image_log.h"
#include "qcow2/core/image_state.h"
#include "qcow2/durable/recover.h"
#include "qcow2/format/bitmap_directory.h"
#include "qcow2/format/format.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/header.h"
#include "qcow2/space/alloc.h"
#include "qcow2/space/refcount.h"

// Bitmaps that the log names in one line, and bytes of each name. Most images have no more.
#define BITMAP_NAMES_SHOWN 5
#define BITMAP_NAME_SHOWN 64

static int read_refcount_table(struct image *image, struct error *err)
{
    const struct header *header = &image->header;
    size_t bytes = (size_t)header->refcount_table_clusters << header->cluster_bits;
    uint64_t *table = malloc(bytes);

    if (!table)
        return error_set(err, ENOMEM, "'%s': no memory for the refcount table", image->file->name);

    int result = file_read_blocking(image->file, table, header->refcount_table_offset, bytes);
    if (result < 0) {
        free(table);
        return error_set(err, -result, "'%s': cannot read the refcount table: %s",
                         image->file->name, strerror(-result));
    }
    for (size_t i = 0; i < bytes / FORMAT_ENTRY_BYTES; i++)
        table[i] = be64toh(table[i]) & FORMAT_REFCOUNT_TABLE_OFFSET_MASK;
    if (refcounts_init(image->refcounts, &image->geometry, table, bytes / FORMAT_ENTRY_BYTES) < 0)
        return error_set(err, ENOMEM, "'%s': no memory for refcounts", image->file->name);
    return 0;
}

// A file that was cut short reads as zeros behind its end: its tables map nothing, and its
// refcounts call clusters in use free. After a crash the refcounts do not matter.
static int check_whole(const struct image *image, uint64_t size, struct error *err)
{
    const struct header *header = &image->header;
    const struct refcounts *rc = image->refcounts;
    uint64_t cluster_size = image->geometry.cluster_size;
    const char *what = NULL;

    if (header->l1_offset + (uint64_t)header->l1_size * FORMAT_ENTRY_BYTES > size)
        return error_set(err, EINVAL,
                         "'%s': the file ends before its L1 table does; copy it again, or save "
                         "what there is with --read-only",
                         image->file->name);
    if (dirty_bit_on(image->dirty_bit))
        return 0;
    if (header->refcount_table_offset +
            ((uint64_t)header->refcount_table_clusters << header->cluster_bits) >
        size)
        what = "its refcount table";
    // An invalid entry costs only the clusters that its block covers.
    for (uint64_t i = 0; i < rc->table_size && !what; i++) {
        uint64_t block = rc->table[i];
        bool valid = block % cluster_size == 0 && block < HEADER_OFFSET_LIMIT;

        if (block != 0 && valid && block + cluster_size > size)
            what = "a refcount block";
    }
    return what ? error_set(err, EINVAL,
                            "'%s': the file ends before %s does; run 'lazycow check -r all', or "
                            "serve it with --read-only",
                            image->file->name, what)
                : 0;
}

// Appends before and the name of a bitmap, made safe for a terminal.
static void append_name(struct error *text, const char *before, const char *name)
{
    char shown[BITMAP_NAME_SHOWN + 1];

    snprintf(shown, sizeof(shown), "%s", name);
    for (char *c = shown; *c != '\0'; c++) {
        if ((unsigned char)*c < ' ' || (unsigned char)*c > '~')
            *c = '?';
    }
    error_append(text, "%s'%s'", before, shown);
}

// Logs once that the bitmaps will not be kept.
static void tell_bitmaps(struct image *image)
{
    struct bitmap_directory directory;
    struct error text;
    const char *when = dirty_bit_on(image->dirty_bit)
                           ? "they are removed now, as it was not closed cleanly"
                           : "the first write removes them; to keep them serve "
                             "it with --read-only";

    if (!(image->header.autoclear & FORMAT_AUTOCLEAR_BITMAPS)) {
        image_log(image,
                  "has persistent bitmaps that are out of date, for something that does not keep "
                  "them wrote to it: %s",
                  dirty_bit_on(image->dirty_bit) ? when : "the first write removes them");
        return;
    }
    if (bitmap_directory_read(image->file, &image->header, &directory, &text) < 0) {
        image_log(image, "has persistent bitmaps that cannot be read (%s): %s", text.text, when);
        return;
    }
    error_set(&text, 0, "has %zu persistent bitmaps", directory.count);
    for (size_t i = 0; i < directory.count && i < BITMAP_NAMES_SHOWN; i++)
        append_name(&text, i == 0 ? " (" : ", ", directory.bitmaps[i].name);
    if (directory.count > 0)
        error_append(&text, directory.count > BITMAP_NAMES_SHOWN ? ", ...)" : ")");
    image_log(image, "%s, which are not kept: %s", text.text, when);
    bitmap_directory_free(&directory);
}

int writable_prepare(struct image *image, struct error *err)
{
    int64_t size = file_size(image->file);
    int result = read_refcount_table(image, err);

    if (result < 0)
        return result;
    if (size < 0)
        return error_set(err, (int)-size, "'%s': cannot tell its size: %s", image->file->name,
                         strerror((int)-size));
    result = check_whole(image, (uint64_t)size, err);
    if (result < 0)
        return result;
    if (image->options.lazy_refcounts == LAZY_ON && image->header.version < 3)
        return error_set(err, ENOTSUP,
                         "'%s': lazy refcounts need version 3 (compat=1.1); serve it without "
                         "--lazy-refcounts=on, or convert it",
                         image->file->name);
    image->lazy = image->options.lazy_refcounts == LAZY_FROM_HEADER
                      ? (image->header.compatible & HEADER_COMPATIBLE_LAZY_REFCOUNTS) != 0
                      : image->options.lazy_refcounts == LAZY_ON;
    uint64_t fresh = geometry_clusters(&image->geometry, (uint64_t)size);
    // On a device the refcounts, not the size, tell where the image ends.
    if (!image->file->fresh_is_zero && refcounts_load_last(image->refcounts, image->file) == 0)
        fresh = refcounts_end(image->refcounts, fresh);
    alloc_init(image->alloc, image, fresh, (uint64_t)size, true);
    waitq_init(&image->recovery->waiters, "recovery to count the clusters");
    // Version 2 has no autoclear bit that vouches for bitmaps, so that no program may use them.
    image->has_bitmaps =
        image->header.version >= 3 && bitmap_directory_extension(&image->header) != NULL;
    if (image->has_bitmaps)
        tell_bitmaps(image);
    if (dirty_bit_on(image->dirty_bit))
        recover_start(image);
    return 0;
}
