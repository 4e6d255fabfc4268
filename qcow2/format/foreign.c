// SPDX-License-Identifier: Apache-2.0
#include "qcow2/format/foreign.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// Bytes at the start of a file in which all signatures at the start lie.
#define START_BYTES 128
// Size of the block at the end of a file that holds the signature of fixed VPC and DMG images.
#define TRAILER_BYTES 512

enum place { AT_START, IN_TRAILER };

static const struct signature {
    struct foreign_format format;
    enum place place;
    unsigned offset;
    unsigned length;
    const char *bytes;
} signatures[] = {
    {{"qcow (version 1)", "qcow"}, AT_START, 0, 8, "QFI\xfb\0\0\0\1"},
    {{"VMDK", "vmdk"}, AT_START, 0, 4, "KDMV"},
    {{"VMDK", "vmdk"}, AT_START, 0, 4, "COWD"},
    {{"VMDK", "vmdk"}, AT_START, 0, 21, "# Disk DescriptorFile"},
    {{"VDI", "vdi"}, AT_START, 64, 4, "\x7f\x10\xda\xbe"},
    {{"VHDX", "vhdx"}, AT_START, 0, 8, "vhdxfile"},
    {{"VHD", "vpc"}, AT_START, 0, 8, "conectix"},
    {{"VHD", "vpc"}, IN_TRAILER, 0, 8, "conectix"},
    {{"QED", "qed"}, AT_START, 0, 4, "QED\0"},
    {{"LUKS", "luks"}, AT_START, 0, 6, "LUKS\xba\xbe"},
    {{"Parallels", "parallels"}, AT_START, 0, 16, "WithoutFreeSpace"},
    {{"Parallels", "parallels"}, AT_START, 0, 16, "WithouFreSpacExt"},
    {{"DMG", "dmg"}, IN_TRAILER, 0, 4, "koly"},
    {{"Bochs", "bochs"}, AT_START, 0, 22, "Bochs Virtual HD Image"},
    {{"gzip", NULL}, AT_START, 0, 3, "\x1f\x8b\x08"},
    {{"xz", NULL},
     AT_START,
     0,
     6,
     "\xfd"
     "7zXZ\0"},
    {{"zstd", NULL}, AT_START, 0, 4, "\x28\xb5\x2f\xfd"},
    {{"bzip2", NULL}, AT_START, 0, 3, "BZh"},
    {{"zip", NULL}, AT_START, 0, 4, "PK\3\4"},
};

const struct foreign_format *foreign_format_of(struct file *file)
{
    uint8_t start[START_BYTES];
    uint8_t trailer[TRAILER_BYTES] = {0};
    int64_t size = file_size(file);

    if (size <= 0 || file_read_blocking(file, start, 0, sizeof(start)) < 0)
        return NULL;
    if (size >= TRAILER_BYTES &&
        file_read_blocking(file, trailer, (uint64_t)size - TRAILER_BYTES, sizeof(trailer)) < 0)
        return NULL;
    for (size_t i = 0; i < sizeof(signatures) / sizeof(signatures[0]); i++) {
        const struct signature *s = &signatures[i];
        const uint8_t *block = s->place == AT_START ? start : trailer;

        if (memcmp(block + s->offset, s->bytes, s->length) == 0)
            return &s->format;
    }
    return NULL;
}

int foreign_format_refuse(const struct foreign_format *format, const char *name, struct error *err)
{
    if (format->driver == NULL)
        return error_set(err, ENOTSUP,
                         "'%s': looks like %s data, not like an image; unpack it first", name,
                         format->name);
    return error_set(err, ENOTSUP,
                     "'%s': looks like a %s image, which is not supported; convert it with "
                     "'qemu-img convert -f %s -O qcow2'",
                     name, format->name, format->driver);
}
