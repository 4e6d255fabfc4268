// SPDX-License-Identifier: Apache-2.0
#include "qcow2/format/bitmap_directory.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/format/format.h"

static int bitmap_directory_broken(struct error *err, const struct file *file, const char *what)
{
    return error_set(err, EINVAL,
                     "'%s': broken bitmap directory: %s; remove the bitmaps with qemu-img bitmap",
                     file->name, what);
}

const struct header_extension *bitmap_directory_extension(const struct header *header)
{
    for (size_t i = 0; i < header->extension_count; i++) {
        if (header->extensions[i].type == FORMAT_EXTENSION_BITMAPS)
            return &header->extensions[i];
    }
    return NULL;
}

// Returns the bytes of the entry before its padding.
static uint64_t bitmap_directory_entry_bytes(const uint8_t *p)
{
    return (uint64_t)FORMAT_BITMAP_ENTRY_BYTES + format_get32(p + FORMAT_BITMAP_EXTRA_LENGTH) +
           format_get16(p + FORMAT_BITMAP_NAME_LENGTH);
}

// Returns true when the table of a bitmap lies inside the file. *room: bytes of the file that
// further tables may take.
static bool table_fits(const struct header *header, const struct bitmap *b, uint64_t file_bytes,
                       uint64_t *room)
{
    uint64_t bytes = (uint64_t)b->table_size * FORMAT_ENTRY_BYTES;

    if (b->table_size > BITMAP_TABLE_ENTRIES_MAX ||
        (uint64_t)b->table_size << header->cluster_bits > BITMAP_DATA_BYTES_MAX ||
        b->table_offset % header_cluster_size(header) != 0 || b->table_offset > file_bytes ||
        bytes > file_bytes - b->table_offset || bytes > *room)
        return false;
    *room -= bytes;
    return true;
}

static int decode_entries(const struct file *file, const struct header *header, uint64_t file_bytes,
                          struct bitmap_directory *d, struct error *err)
{
    uint64_t room = file_bytes;
    uint64_t pos = 0;

    for (size_t i = 0; i < d->count; i++) {
        if (d->bytes - pos < FORMAT_BITMAP_ENTRY_BYTES)
            return bitmap_directory_broken(err, file, "it ends too early");
        uint8_t *p = d->storage + pos;
        uint64_t bytes = bitmap_directory_entry_bytes(p);
        if (bytes > d->bytes - pos)
            return bitmap_directory_broken(err, file, "it ends too early");

        struct bitmap *b = &d->bitmaps[i];
        uint16_t name_length = format_get16(p + FORMAT_BITMAP_NAME_LENGTH);
        b->table_offset = format_get64(p + FORMAT_BITMAP_TABLE_OFFSET);
        b->table_size = format_get32(p + FORMAT_BITMAP_TABLE_SIZE);
        b->flags = format_get32(p + FORMAT_BITMAP_FLAGS);
        b->granularity_bits = p[FORMAT_BITMAP_GRANULARITY];
        if (name_length > BITMAP_NAME_MAX || b->granularity_bits > BITMAP_GRANULARITY_BITS_MAX ||
            !table_fits(header, b, file_bytes, &room))
            return bitmap_directory_broken(err, file,
                                           "a bitmap exceeds the limits of the format or the file");

        // The name moves left by one byte, over fields that were decoded, to make room for its
        // terminator.
        char *name = (char *)p + bytes - name_length;
        memmove(name - 1, name, name_length);
        name[name_length - 1] = '\0';
        b->name = name - 1;
        pos += (bytes + 7) & ~7ull;
        if (pos > d->bytes)
            pos = d->bytes;
    }
    return 0;
}

// Decodes the place of the directory from the extension's data.
static int locate(struct file *file, const struct header *header,
                  const struct header_extension *extension, struct bitmap_directory *d,
                  uint64_t *file_bytes, struct error *err)
{
    uint8_t data[FORMAT_BITMAPS_EXTENSION_BYTES];

    if (extension->length != sizeof(data))
        return bitmap_directory_broken(err, file, "its header extension has the wrong length");
    int ret = file_read_blocking(file, data, extension->offset, sizeof(data));
    if (ret < 0)
        return error_set(err, -ret, "'%s': cannot read the header: %s", file->name, strerror(-ret));
    d->count = format_get32(data + FORMAT_BITMAPS_COUNT);
    d->bytes = format_get64(data + FORMAT_BITMAPS_DIRECTORY_SIZE);
    d->offset = format_get64(data + FORMAT_BITMAPS_DIRECTORY_OFFSET);
    int64_t size = file_size(file);
    if (size < 0)
        return error_set(err, (int)-size, "'%s': cannot tell its size: %s", file->name,
                         strerror((int)-size));
    *file_bytes = (uint64_t)size;
    if (d->count > BITMAP_COUNT_MAX || d->bytes > BITMAP_DIRECTORY_BYTES_MAX ||
        d->offset % header_cluster_size(header) != 0 || d->offset > (uint64_t)size ||
        d->bytes > (uint64_t)size - d->offset)
        return bitmap_directory_broken(
            err, file, "it exceeds the limits of the format or the end of the file");
    return 0;
}

int bitmap_directory_read(struct file *file, const struct header *header,
                          struct bitmap_directory *directory, struct error *err)
{
    const struct header_extension *extension = bitmap_directory_extension(header);

    memset(directory, 0, sizeof(*directory));
    if (extension == NULL || !(header->autoclear & FORMAT_AUTOCLEAR_BITMAPS))
        return 0;
    uint64_t file_bytes = 0;
    int ret = locate(file, header, extension, directory, &file_bytes, err);
    if (ret == 0 && directory->count > 0) {
        directory->bitmaps = calloc(directory->count, sizeof(*directory->bitmaps));
        directory->storage = malloc(directory->bytes + 1);
        if (directory->bitmaps == NULL || directory->storage == NULL)
            ret = error_set(err, ENOMEM, "'%s': no memory for the bitmap directory", file->name);
    }
    if (ret == 0 && directory->count > 0) {
        ret = file_read_blocking(file, directory->storage, directory->offset, directory->bytes);
        if (ret < 0)
            error_set(err, -ret, "'%s': cannot read the bitmap directory: %s", file->name,
                      strerror(-ret));
        else
            ret = decode_entries(file, header, file_bytes, directory, err);
    }
    if (ret < 0)
        bitmap_directory_free(directory);
    return ret;
}

void bitmap_directory_free(struct bitmap_directory *directory)
{
    free(directory->bitmaps);
    free(directory->storage);
    memset(directory, 0, sizeof(*directory));
}
