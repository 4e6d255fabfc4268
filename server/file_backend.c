// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE 1 // O_DIRECT, statx
#include "server/file_backend.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2/format/backing_name.h"
#include "server/file_align.h"
#include "server/file_locking.h"
#include "server/file_posix.h"

// Alignments that are tried if the kernel does not tell the disk's: every disk has one of them.
#define PROBE_ALIGNMENT_MIN 512
#define PROBE_ALIGNMENT_MAX 4096u

// Seals of a memfd under which an image cannot be written: its file grows, and shrinks at the end.
#define SEALS_AGAINST_WRITING (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)

static struct backend *backend_make(enum backend_kind kind, struct runq *runq, struct error *err)
{
    if (kind != BACKEND_THREADS) {
        struct backend *backend = backend_uring_new(runq, err);

        if (backend != NULL || kind == BACKEND_IO_URING)
            return backend;
    }
    return backend_pool_new(runq, err);
}

struct backend *backend_new(enum backend_kind kind, struct runq *runq, struct error *err)
{
    struct backend *backend = backend_make(kind, runq, err);

    if (backend != NULL)
        file_map_init(&backend->map, runq);
    return backend;
}

int backend_prepare(struct backend *backend, struct error *err)
{
    return backend->ops->prepare != NULL ? backend->ops->prepare(backend, err) : 0;
}

const char *backend_name(const struct backend *backend)
{
    return backend->ops->name;
}

int backend_fd(const struct backend *backend)
{
    return backend->fd;
}

void backend_turn(struct backend *backend)
{
    backend->inline_bytes = 0;
    backend->inline_write_ns = 0;
    backend->ops->turn(backend);
}

void backend_set_alone(struct backend *backend, bool alone)
{
    backend->alone = alone;
}

bool backend_has_blocked(struct backend *backend)
{
    bool blocked = backend->blocked;

    backend->blocked = false;
    return blocked;
}

void backend_set_map_max(struct backend *backend, uint64_t bytes)
{
    file_map_set_limit(&backend->map, bytes);
}

bool backend_tick(struct backend *backend)
{
    return file_map_tick(&backend->map);
}

void backend_free(struct backend *backend)
{
    if (backend == NULL)
        return;
    file_map_destroy(&backend->map);
    backend->ops->free(backend);
}

static int explain_open(const char *path, const struct file_open_options *options, int code,
                        struct error *err)
{
    const char *advice = "";
    // EPERM: the file is immutable or append-only (chattr). ETXTBSY: it runs as a program.
    bool maybe_readable = code == EROFS || code == EACCES || code == EPERM || code == ETXTBSY;

    if (maybe_readable && !options->read_only && access(path, R_OK) == 0)
        advice = "; it can be opened read-only: 'serve --read-only' (-r), 'check' without -r";
    else if (path[0] == '\0')
        advice = "; the name is empty";
    else if (code == EISDIR)
        advice = "; name an image file or a block device";
    else if (code == ENOENT && !backing_name_is_local(path))
        advice = "; only local files and block devices can be opened, no URLs and no json: names";
    else if (code == ENOENT)
        advice = "; check the name";
    else if (code == EACCES)
        advice = "; this user needs access to it and to the folders above it";
    else if (code == ENXIO)
        advice = "; the device is not there or has no medium";
    else if (code == EMFILE || code == ENFILE)
        advice = "; each image of a backing chain takes one: raise the limit with 'ulimit -n'";
    return error_set(err, code, "%s: cannot open: %s%s", path, strerror(code), advice);
}

static int no_direct_io(const char *path, int code, struct error *err)
{
    return error_set(err, code, "%s: its file system has no direct I/O; use --cache=writeback",
                     path);
}

// Finds files that open for writing although each write would fail: a device that is set read-only
// (blockdev --setro, losetup -r, a write-protected card), and sealed memory. Returns 0 or a
// positive errno.
static int find_write_protection(int fd, bool block_device)
{
    int read_only = 0;

    if (block_device)
        return ioctl(fd, BLKROGET, &read_only) == 0 && read_only ? EROFS : 0;
    int seals = fcntl(fd, F_GET_SEALS);

    return seals >= 0 && (seals & SEALS_AGAINST_WRITING) ? EPERM : 0;
}

static int file_backend_check_type(const struct stat *st, const char *path,
                                   const struct file_open_options *options, struct error *err)
{
    if (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode))
        return 0;
    if (S_ISDIR(st->st_mode))
        return explain_open(path, options, EISDIR, err);
    return error_set(err, EINVAL,
                     "%s: is neither a file nor a block device; name an image file or a block "
                     "device",
                     path);
}

// Refuses everything but regular files and block devices, and sets the descriptor's mode of
// operation.
static int set_up_descriptor(int fd, const char *path, const struct file_open_options *options,
                             bool *block_device, struct error *err)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return error_set(err, errno, "%s: %s", path, strerror(errno));
    int result = file_backend_check_type(&st, path, options, err);
    if (result < 0)
        return result;
    int protection = options->read_only ? 0 : find_write_protection(fd, S_ISBLK(st.st_mode));

    if (protection != 0)
        return explain_open(path, options, protection, err);
    // Removes O_NONBLOCK, with which io_uring would answer EAGAIN instead of waiting.
    if (fcntl(fd, F_SETFL, options->direct ? O_DIRECT : 0) != 0) {
        int code = errno;

        return options->direct && code == EINVAL
                   ? no_direct_io(path, EOPNOTSUPP, err)
                   : error_set(err, code, "%s: %s", path, strerror(code));
    }
    *block_device = S_ISBLK(st.st_mode);
    return 0;
}

// Returns the descriptor, or a negative errno with a message.
static int open_descriptor(const char *path, const struct file_open_options *options,
                           bool *block_device, struct error *err)
{
    int access_mode = options->read_only ? O_RDONLY : O_RDWR;
    struct stat st;
    int fd;

    // A FIFO or a device is not opened at all: that would wake its other end or trigger a device.
    if (stat(path, &st) == 0) {
        int result = file_backend_check_type(&st, path, options, err);

        if (result < 0)
            return result;
    }
    // O_NONBLOCK, in case the path has become a FIFO since it was checked.
    do {
        fd = open(path, access_mode | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return explain_open(path, options, errno, err);

    int result = set_up_descriptor(fd, path, options, block_device, err);
    if (result < 0) {
        close(fd);
        return result;
    }
    return fd;
}

// Finds, for kernels that do not tell the alignment, the smallest size in which the start of the
// file can be read.
static int probe_alignment(int fd, size_t *alignment)
{
    struct stat st;
    int logical_block;
    void *buffer;

    if (fstat(fd, &st) != 0)
        return -errno;
    *alignment = PROBE_ALIGNMENT_MAX;
    if (S_ISBLK(st.st_mode)) {
        if (ioctl(fd, BLKSSZGET, &logical_block) == 0 && logical_block > 0)
            *alignment = (size_t)logical_block;
        return 0;
    }
    // A file shorter than that reads to its end with any size, which proves nothing.
    if (st.st_size < (off_t)PROBE_ALIGNMENT_MAX)
        return 0;
    if (posix_memalign(&buffer, PROBE_ALIGNMENT_MAX, PROBE_ALIGNMENT_MAX) != 0)
        return -ENOMEM;
    if (pread(fd, buffer, PROBE_ALIGNMENT_MIN, 0) == PROBE_ALIGNMENT_MIN)
        *alignment = PROBE_ALIGNMENT_MIN;
    free(buffer);
    return 0;
}

// Finds the alignments that O_DIRECT on fd needs. -EOPNOTSUPP if fd takes no direct I/O.
static int find_alignment(int fd, size_t *alignment, size_t *memory_alignment)
{
#ifdef STATX_DIOALIGN
    struct statx stx;

    // Linux 6.1 and later, if the file system supports it.
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) != 0) {
        *alignment = stx.stx_dio_offset_align;
        *memory_alignment = stx.stx_dio_mem_align;
        return stx.stx_dio_offset_align == 0 ? -EOPNOTSUPP : 0;
    }
#endif
    int result = probe_alignment(fd, alignment);

    *memory_alignment = *alignment < FILE_ALIGN_MEMORY_MAX ? *alignment : FILE_ALIGN_MEMORY_MAX;
    return result;
}

static int wrap_direct(int fd, struct file *lower, struct file **out, struct error *err)
{
    size_t alignment;
    size_t memory_alignment;
    int result = find_alignment(fd, &alignment, &memory_alignment);

    if (result < 0)
        return no_direct_io(lower->name, -result, err);
    result = file_align_new(lower, alignment, memory_alignment, out);
    return result < 0 ? error_set(err, -result, "%s: %s", lower->name, strerror(-result)) : 0;
}

int backend_open_file(struct backend *backend, const char *name,
                      const struct file_open_options *options, struct file **out, struct error *err)
{
    const char *path = backing_name_path(name);
    bool block_device = false;
    int result;

    if (options->force_share && !options->read_only)
        return error_set(err, EINVAL, "%s: locks can only be left out for a read-only image", path);

    int fd = open_descriptor(path, options, &block_device, err);
    if (fd < 0)
        return fd;
    if (!options->force_share) {
        result = file_locking_take(fd, options->read_only ? FILE_LOCK_READER : FILE_LOCK_WRITER,
                                   options->locking, path, options->warn, options->context, err);
        if (result < 0) {
            close(fd);
            return result;
        }
    }

    const struct posix_file_options file_options = {
        .read_only = options->read_only,
        .direct = options->direct,
        .no_flush = options->no_flush,
        .block_device = block_device,
        .shared = options->force_share,
    };
    struct posix_file *file = posix_file_new(backend, fd, path, &file_options);
    if (file == NULL) {
        close(fd);
        return error_set(err, ENOMEM, "%s: out of memory", path);
    }
    if (options->direct) {
        result = wrap_direct(fd, &file->file, out, err);
        if (result < 0)
            file_close(&file->file);
        return result;
    }
    *out = &file->file;
    return 0;
}
