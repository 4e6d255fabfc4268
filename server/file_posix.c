// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE 1 // fallocate, preadv2, SEEK_DATA
#include "server/file_posix.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "qcow2/base/container.h"
#include "server/clock.h"
#include "server/file_seek.h"
#include "server/quick_call.h"

// Requests in flight that hold the inode's lock. More would only block more workers, with none left
// for other files; the second one is ready when the first one ends.
#define LANE_DEPTH 2u

// Unit of the page cache. A write that covers only part of a page has to read the rest first.
#define PAGE_BYTES 4096u

// Granularity in which direct I/O ends early: a shorter result is the end of the file.
#define SECTOR_BYTES 512u

struct posix_file *posix_file_of(const struct file_io *io)
{
    return (struct posix_file *)io->file;
}

struct file_io *file_io_of(struct task *task)
{
    return container_of(task, struct file_io, task);
}

// Returns true for requests that hold the inode's lock all the time, so that only one of them makes
// progress.
static bool locks_inode(const struct file_io *io)
{
    switch (io->kind) {
    case FILE_READ:
    case FILE_DATASYNC:
    case FILE_EXTENTS:
        return false;
    case FILE_WRITE:
        return !posix_file_of(io)->direct;
    case FILE_ZERO:
    case FILE_PUNCH:
    case FILE_ALLOCATE:
    case FILE_TRUNCATE:
        return true;
    }
    abort();
}

static bool fits_inline(const struct backend *backend, uint64_t length, uint64_t max)
{
    return length <= max && backend->inline_bytes + length <= INLINE_TURN_BYTES_MAX;
}

bool backend_admit_inline(struct backend *backend, uint64_t length, uint64_t max)
{
    if (!fits_inline(backend, length, max))
        return false;
    backend->inline_bytes += length;
    return true;
}

int posix_file_rest(const struct file_io *io, struct iovec *iov)
{
    uint64_t skip = io->progress;
    int count = 0;

    for (int i = 0; i < io->iovcnt; i++) {
        if (skip >= io->iov[i].iov_len) {
            skip -= io->iov[i].iov_len;
            continue;
        }
        iov[count].iov_base = (char *)io->iov[i].iov_base + skip;
        iov[count].iov_len = io->iov[i].iov_len - skip;
        count++;
        skip = 0;
    }
    return count;
}

// Fills the rest with zeros: past the end of the file everything reads as zeros.
static void zero_rest(struct file_io *io)
{
    struct iovec iov[FILE_IOV_MAX];
    int count = posix_file_rest(io, iov);

    for (int i = 0; i < count; i++)
        memset(iov[i].iov_base, 0, iov[i].iov_len);
    io->progress = io->length;
}

bool posix_file_advance(struct file_io *io, ssize_t answer, int *result)
{
    *result = 0;
    if (answer < 0) {
        *result = (int)answer;
        return answer != -EINTR;
    }
    if (io->kind != FILE_READ && io->kind != FILE_WRITE)
        return true;

    io->progress += (uint64_t)answer;
    assert(io->progress <= io->length);
    if (io->progress == io->length)
        return true;
    if (io->kind == FILE_WRITE) {
        // No bytes written and no error: a retry could repeat that for ever.
        *result = answer == 0 ? -EIO : 0;
        return answer == 0;
    }
    if (answer == 0 || (posix_file_of(io)->direct && answer % SECTOR_BYTES != 0)) {
        zero_rest(io);
        return true;
    }
    return false;
}

int posix_file_fallocate_mode(enum file_io_kind kind)
{
    switch (kind) {
    case FILE_ZERO:
        return FALLOC_FL_ZERO_RANGE;
    case FILE_PUNCH:
        return FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    case FILE_ALLOCATE:
        return 0;
    case FILE_READ:
    case FILE_WRITE:
    case FILE_DATASYNC:
    case FILE_TRUNCATE:
    case FILE_EXTENTS:
        break;
    }
    abort();
}

static int64_t posix_size(struct file *file)
{
    struct posix_file *f = (struct posix_file *)file;

    if (f->block_device) {
        off_t end = lseek(f->fd, 0, SEEK_END);

        return end < 0 ? -errno : end;
    }

    struct stat st;
    return fstat(f->fd, &st) != 0 ? -errno : st.st_size;
}

// A block device keeps its size: setting a size that fits succeeds, a larger one is lack of space.
static int truncate_file(struct posix_file *f, uint64_t size)
{
    if (f->block_device) {
        int64_t have = posix_size(&f->file);

        if (have < 0)
            return (int)have;
        return size <= (uint64_t)have ? 0 : -ENOSPC;
    }
    return ftruncate(f->fd, (off_t)size) != 0 ? -errno : 0;
}

static ssize_t call_once(struct file_io *io, int flags)
{
    struct posix_file *f = posix_file_of(io);
    off_t offset = (off_t)(io->offset + io->progress);
    struct iovec iov[FILE_IOV_MAX];
    ssize_t answer = 0;
    int count;

    switch (io->kind) {
    case FILE_READ:
        count = posix_file_rest(io, iov);
        answer = quick_preadv2(f->fd, iov, count, offset, flags);
        break;
    case FILE_WRITE:
        count = posix_file_rest(io, iov);
        answer = quick_pwritev2(f->fd, iov, count, offset, flags);
        break;
    case FILE_DATASYNC:
        answer = fdatasync(f->fd);
        break;
    case FILE_ZERO:
    case FILE_PUNCH:
    case FILE_ALLOCATE:
        answer = fallocate(f->fd, posix_file_fallocate_mode(io->kind), (off_t)io->offset,
                           (off_t)io->length);
        break;
    case FILE_TRUNCATE:
        return truncate_file(f, io->offset);
    case FILE_EXTENTS:
        return file_seek_extents(f->fd, io);
    }
    return answer < 0 ? -errno : answer;
}

int posix_file_execute(struct file_io *io)
{
    int result;

    while (!posix_file_advance(io, call_once(io, 0), &result)) {
        // EINTR, or a short read or write: continues with the rest.
    }
    return result;
}

bool posix_file_try_read(struct file_io *io, int *result)
{
    struct posix_file *f = posix_file_of(io);

    if (f->direct || f->no_nowait_read)
        return false;

    ssize_t answer = call_once(io, RWF_NOWAIT);
    if (answer == -EAGAIN)
        return false;
    if (answer == -EOPNOTSUPP) {
        f->no_nowait_read = true;
        return false;
    }
    return posix_file_advance(io, answer, result);
}

static bool page_resident(struct posix_file *f, uint64_t offset)
{
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};

    if (f->no_nowait_read)
        return true;
    return quick_preadv2(f->fd, &iov, 1, (off_t)offset, RWF_NOWAIT) >= 0 || errno != EAGAIN;
}

// Returns true if the pages that the write covers only in part are in the page cache.
static bool edges_resident(struct posix_file *f, const struct file_io *io)
{
    uint64_t begin = io->offset + io->progress;
    uint64_t end = io->offset + io->length;

    if (begin % PAGE_BYTES != 0 && !page_resident(f, begin))
        return false;
    return end % PAGE_BYTES == 0 || page_resident(f, end);
}

// Makes a buffered write at once if it is expected to be quick. Returns as posix_file_try_read.
static bool try_write(struct file_io *io, int *result)
{
    struct posix_file *f = posix_file_of(io);

    // While a fallocate holds the inode's lock, a write here would wait for it.
    if (f->direct || f->locking > 0 || !write_pace_allows(&f->write_pace, clock_now_ns()))
        return false;
    if (!backend_admit_inline(f->backend, io->length, INLINE_WRITE_MAX) || !edges_resident(f, io))
        return false;

    uint64_t begun = clock_now_ns();
    ssize_t answer = call_once(io, 0);
    uint64_t ended = clock_now_ns();
    uint64_t took = ended - begun;

    f->backend->inline_write_ns += took;
    write_pace_note(&f->write_pace, ended, took, f->backend->inline_write_ns);
    return posix_file_advance(io, answer, result);
}

// Makes a barrier at once if it is expected to be quick and no other client would have to wait.
static bool try_sync(struct file_io *io, int *result)
{
    struct posix_file *f = posix_file_of(io);

    if (!f->backend->alone || f->in_flight > 0)
        return false;

    uint64_t begun = clock_now_ns();
    if (!sync_pace_allows(&f->sync_pace, begun))
        return false;
    ssize_t answer = call_once(io, 0);
    uint64_t ended = clock_now_ns();
    sync_pace_note(&f->sync_pace, ended, ended - begun);
    f->sync_pace.dirty = 0;
    f->backend->blocked = true;
    return posix_file_advance(io, answer, result);
}

// Copies bytes that are in memory, or makes a loan of them. Returns as posix_file_try_read.
static bool try_map(struct posix_file *f, struct file_io *io)
{
    struct backend *backend = f->backend;

    if (!f->may_map || !fits_inline(backend, io->length, INLINE_READ_MAX))
        return false;
    if (io->loan_wanted)
        io->loan = file_map_loan_take(&backend->map, f->fd, io);
    if (!io->loan && !file_map_read(&backend->map, f->fd, io)) {
        file_map_missed(&backend->map, f->fd, io);
        return false;
    }
    backend->inline_bytes += io->length;
    return true;
}

static bool try_inline(struct posix_file *f, struct file_io *io, int *result)
{
    switch (io->kind) {
    case FILE_READ:
        if (try_map(f, io)) {
            *result = 0;
            return true;
        }
        if (!f->backend->ops->inline_reads ||
            !backend_admit_inline(f->backend, io->length, INLINE_READ_MAX))
            return false;
        return posix_file_try_read(io, result);
    case FILE_WRITE:
        return try_write(io, result);
    case FILE_DATASYNC:
        return try_sync(io, result);
    case FILE_ZERO:
    case FILE_PUNCH:
    case FILE_ALLOCATE:
    case FILE_TRUNCATE:
    case FILE_EXTENTS:
        return false;
    }
    abort();
}

// Starts requests of the lane up to LANE_DEPTH.
static void start_lane(struct posix_file *f)
{
    struct task *task;

    while (f->lane_started < LANE_DEPTH && (task = STAILQ_FIRST(&f->lane)) != NULL) {
        STAILQ_REMOVE_HEAD(&f->lane, link);
        f->lane_started++;
        f->backend->ops->start(f->backend, file_io_of(task));
    }
}

static void posix_submit(struct file *file, struct file_io *io)
{
    struct posix_file *f = (struct posix_file *)file;
    int result;

    if ((io->length == 0 && io->kind != FILE_DATASYNC && io->kind != FILE_TRUNCATE) ||
        (io->kind == FILE_DATASYNC && f->no_flush)) {
        file_io_complete(io, 0);
        return;
    }
    // A block device cannot report holes.
    if (io->kind == FILE_EXTENTS && f->block_device) {
        file_io_complete(io, -EOPNOTSUPP);
        return;
    }
    if (io->kind == FILE_TRUNCATE)
        sync_pace_note_change(&f->sync_pace, UINT64_MAX);
    else if (io->kind != FILE_READ && io->kind != FILE_DATASYNC && io->kind != FILE_EXTENTS)
        sync_pace_note_change(&f->sync_pace, io->length);
    if (try_inline(f, io, &result)) {
        file_io_complete(io, result);
        return;
    }

    f->in_flight++;
    if (io->kind == FILE_DATASYNC)
        f->sync_pace.dirty = 0;
    if (io->kind == FILE_WRITE || io->kind == FILE_DATASYNC)
        io->submitted_ns = clock_now_ns();
    if (!locks_inode(io)) {
        f->backend->ops->start(f->backend, io);
        return;
    }
    if (io->kind != FILE_WRITE)
        f->locking++;
    STAILQ_INSERT_TAIL(&f->lane, &io->task, link);
    start_lane(f);
}

void posix_file_finish(struct file_io *io, int result)
{
    struct posix_file *f = posix_file_of(io);

    assert(f->in_flight > 0);
    f->in_flight--;
    if (locks_inode(io))
        f->lane_started--;
    if (io->kind == FILE_WRITE) {
        f->write_pace.worker_latency = clock_now_ns() - io->submitted_ns;
    } else if (io->kind == FILE_DATASYNC) {
        uint64_t now = clock_now_ns();
        sync_pace_note(&f->sync_pace, now, now - io->submitted_ns);
    } else if (locks_inode(io)) {
        assert(f->locking > 0);
        f->locking--;
        // Errors of a file system or driver that lacks the call altogether, and of a block device
        // that is asked to change part of a sector.
        if (result == -ENOSYS || result == -ENOTTY || result == -ENODEV ||
            (result == -EINVAL && f->block_device))
            result = -EOPNOTSUPP;
    }
    file_io_complete(io, result);
    start_lane(f);
}

static void posix_wait(struct file *file)
{
    struct backend *backend = ((struct posix_file *)file)->backend;

    if (runq_empty(backend->runq))
        backend->ops->wait(backend);
}

static void posix_loan_return(struct file *file, const void *bytes, uint64_t length)
{
    file_map_loan_return(&((struct posix_file *)file)->backend->map, bytes, length);
}

static bool posix_loan_copy(struct file *file, void *to, const void *bytes, size_t length)
{
    return file_map_loan_copy(&((struct posix_file *)file)->backend->map, to, bytes, length);
}

static void posix_close(struct file *file)
{
    struct posix_file *f = (struct posix_file *)file;

    assert(f->in_flight == 0);
    file_map_forget(&f->backend->map, f->fd);
    close(f->fd);
    free(f->file.name);
    free(f);
}

static const struct file_ops posix_ops = {
    .submit = posix_submit,
    .wait = posix_wait,
    .size = posix_size,
    .loan_copy = posix_loan_copy,
    .loan_return = posix_loan_return,
    .close = posix_close,
};

struct posix_file *posix_file_new(struct backend *backend, int fd, const char *name,
                                  const struct posix_file_options *options)
{
    struct posix_file *f = calloc(1, sizeof(*f));

    if (f == NULL)
        return NULL;
    f->file.name = strdup(name);
    if (f->file.name == NULL) {
        free(f);
        return NULL;
    }
    struct stat st;
    if (fstat(fd, &st) == 0) {
        f->file.device = st.st_dev;
        f->file.inode = st.st_ino;
    }
    f->file.ops = &posix_ops;
    f->file.runq = backend->runq;
    f->file.read_only = options->read_only;
    f->file.shared = options->shared;
    // Blocks of a device hold old data.
    f->file.fresh_is_zero = !options->block_device;
    f->backend = backend;
    f->fd = fd;
    f->direct = options->direct;
    f->no_flush = options->no_flush;
    f->block_device = options->block_device;
    f->may_map = !options->direct && !options->block_device && !options->shared;
    STAILQ_INIT(&f->lane);
    return f;
}
