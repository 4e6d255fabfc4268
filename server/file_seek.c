// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE 1 // SEEK_DATA
#include "server/file_seek.h"

#include <errno.h>
#include <stdbool.h>
#include <unistd.h>

#include "qcow2/base/file.h"

// Holes and data runs that one request examines, at a system call of about a microsecond each. It
// may examine more than it has room for, because short holes count as data.
#define SEEK_PIECES_MAX 256

struct piece {
    uint64_t begin; // bytes: [begin, end)
    uint64_t end;
    enum file_extent_kind kind;
};

// Finds the hole or the data at an offset. Returns 0, or a negative errno.
static int find_piece(int fd, uint64_t begin, struct piece *piece)
{
    off_t data = lseek(fd, (off_t)begin, SEEK_DATA);

    *piece = (struct piece){.begin = begin, .end = INT64_MAX, .kind = FILE_EXTENT_HOLE};
    // No data follows up to the end of the file, and none behind it.
    if (data < 0 && errno == ENXIO)
        return 0;
    if (data < 0)
        return errno == EINVAL ? -EOPNOTSUPP : -errno;
    if ((uint64_t)data > begin) {
        piece->end = (uint64_t)data;
        return 0;
    }

    off_t hole = lseek(fd, data, SEEK_HOLE);
    if (hole < 0)
        return errno == EINVAL ? -EOPNOTSUPP : -errno;
    // A hole was punched there between the two calls.
    if (hole == data)
        return -EAGAIN;
    piece->end = (uint64_t)hole;
    piece->kind = FILE_EXTENT_DATA;
    return 0;
}

// Appends the piece to the extents found before. Returns false if there is no room.
static bool file_seek_add(struct file_io *io, const struct piece *piece)
{
    struct file_extent *last = io->extent_count > 0 ? &io->extents[io->extent_count - 1] : NULL;
    uint64_t length = piece->end - piece->begin;
    enum file_extent_kind kind = length < io->hole_min ? FILE_EXTENT_DATA : piece->kind;

    if (last != NULL && last->kind == kind) {
        last->length += length;
        return true;
    }
    if (io->extent_count == io->extent_max)
        return false;
    io->extents[io->extent_count++] = (struct file_extent){.length = length, .kind = kind};
    return true;
}

int file_seek_extents(int fd, struct file_io *io)
{
    struct piece piece = {.end = io->offset};
    int result = 0;

    for (int i = 0; i < SEEK_PIECES_MAX && piece.end < INT64_MAX; i++) {
        result = find_piece(fd, piece.end, &piece);
        if (result < 0 || !file_seek_add(io, &piece))
            break;
    }
    // The extents before the error are valid.
    return io->extent_count > 0 ? 0 : result;
}
