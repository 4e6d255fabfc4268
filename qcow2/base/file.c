// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/file.h"

#include <assert.h>
#include <stdlib.h>

#include "qcow2/base/container.h"
#include "qcow2/base/known_extents.h"

// Forgets what is known of the range that the io changes. Called at submit and at done, because the
// host may change the range at any time between them.
static void note_change(const struct file_io *io)
{
    struct known_extents *known = io->file->known;

    if (!known)
        return;
    switch (io->kind) {
    case FILE_WRITE:
    case FILE_ZERO:
    case FILE_PUNCH:
        known_extents_changed(known, io->offset, io->offset + io->length);
        return;
    case FILE_TRUNCATE:
        known_extents_changed(known, 0, UINT64_MAX);
        return;
    case FILE_READ:
    case FILE_DATASYNC:
    case FILE_ALLOCATE:
    case FILE_EXTENTS:
        return;
    }
}

static void run_done(struct task *task)
{
    struct file_io *io = container_of(task, struct file_io, task);

    io->file->outstanding--;
    note_change(io);
    io->done(io);
}

void file_submit(struct file *file, struct file_io *io)
{
    assert(!file->read_only || io->kind == FILE_READ || io->kind == FILE_DATASYNC ||
           io->kind == FILE_EXTENTS);
    assert(io->done && io->iovcnt >= 0 && io->iovcnt <= FILE_IOV_MAX);
    assert(!io->loan_wanted || io->kind == FILE_READ);
    assert(io->offset <= INT64_MAX && io->length <= (uint64_t)INT64_MAX - io->offset);
    io->file = file;
    io->task = (struct task){.run = run_done};
    io->progress = 0;
    io->loan = NULL;
    io->result = FILE_IO_RUNNING;
    io->extent_count = 0;
    note_change(io);
    file->outstanding++;
    file->ops->submit(file, io);
}

void file_io_complete(struct file_io *io, int result)
{
    // A request completes exactly once.
    assert(result <= 0 && io->result == FILE_IO_RUNNING && io->file->outstanding > 0);
    assert(!io->loan || (result == 0 && io->loan_wanted));
    io->result = result;
    runq_post(io->file->runq, &io->task);
}

int64_t file_size(struct file *file)
{
    return file->ops->size(file);
}

void file_drain(struct file *file)
{
    while (runq_run(file->runq) || file->outstanding > 0) {
        if (runq_empty(file->runq) && file->outstanding > 0)
            file->ops->wait(file);
    }
}

void file_close(struct file *file)
{
    free(file->extents);
    file->ops->close(file);
}

struct blocking_io {
    struct file_io io;
    bool finished;
};

static void blocking_done(struct file_io *io)
{
    (container_of(io, struct blocking_io, io))->finished = true;
}

static int run_blocking(struct file *file, const struct file_io *request)
{
    struct blocking_io blocking = {.io = *request};

    blocking.io.done = blocking_done;
    file_submit(file, &blocking.io);
    while (!blocking.finished) {
        if (!runq_run(file->runq))
            file->ops->wait(file);
    }
    return blocking.io.result;
}

int file_read_blocking(struct file *file, void *buf, uint64_t offset, size_t length)
{
    struct iovec iov = {.iov_base = buf, .iov_len = length};

    return run_blocking(
        file, &(struct file_io){
                  .kind = FILE_READ, .offset = offset, .length = length, .iov = &iov, .iovcnt = 1});
}

int file_write_blocking(struct file *file, const void *buf, uint64_t offset, size_t length)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = length};

    return run_blocking(
        file,
        &(struct file_io){
            .kind = FILE_WRITE, .offset = offset, .length = length, .iov = &iov, .iovcnt = 1});
}

int file_do_blocking(struct file *file, enum file_io_kind kind, uint64_t offset, uint64_t length)
{
    return run_blocking(file, &(struct file_io){.kind = kind, .offset = offset, .length = length});
}
