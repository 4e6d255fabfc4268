// SPDX-License-Identifier: Apache-2.0
// The io_uring backend: one ring for all files. Requests are queued here and enter the kernel
// together, once a turn; reads of cached data complete during that call.
//
// The loop polls the ring's own descriptor. IORING_SETUP_DEFER_TASKRUN would batch completions
// better, but a poll of such a ring does not wake up (seen on Linux 6.18), and an eventfd would
// cost two more system calls for every batch of cached reads.
#include "server/file_posix.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/log.h"
#include "server/threads.h"

// Submission entries; the kernel makes twice as many for completions. Further requests wait in the
// queue: disks gain nothing from more, and 512 entries would cost 40 KiB.
#define RING_ENTRIES 256u

// Most bytes of a single buffer in one entry, whose length has 32 bits. The kernel moves at most 2
// GiB less a page in one call.
#define CALL_BYTES_MAX (1u << 30)

// Nanoseconds to wait when the kernel has no memory for a request and no request in flight will
// end.
#define NO_MEMORY_PAUSE_NS 1000000

// Value of worker_result while the request is in flight.
#define WORKER_STARTS 1

struct uring {
    struct backend backend; // first member
    struct io_uring ring;
    struct io_list queued;
    size_t queued_count;
    // Entries submitted and not yet reaped.
    unsigned in_flight;
    unsigned in_flight_max;
    // Threads for requests that the ring has no operation for; NULL until the first. The ring polls
    // for their completions.
    struct backend *aside;
    bool polling;
    // Result of the request that makes the kernel start a worker.
    int worker_result;
};

static struct uring *uring_of(struct backend *backend)
{
    return (struct uring *)backend;
}

static void enqueue(struct uring *u, struct file_io *io)
{
    STAILQ_INSERT_TAIL(&u->queued, &io->task, link);
    u->queued_count++;
}

static struct file_io *dequeue(struct uring *u)
{
    struct task *task = STAILQ_FIRST(&u->queued);

    STAILQ_REMOVE_HEAD(&u->queued, link);
    u->queued_count--;
    return file_io_of(task);
}

// Starts a request that the ring has no operation for: FILE_EXTENTS, and FILE_TRUNCATE before Linux
// 6.9.
static void start_aside(struct uring *u, struct file_io *io)
{
    struct error err;

    if (u->aside == NULL)
        u->aside = backend_pool_new(u->backend.runq, &err);
    if (u->aside != NULL)
        u->aside->ops->start(u->aside, io);
    else if (io->kind == FILE_EXTENTS)
        posix_file_finish(io, -EAGAIN);
    else
        posix_file_finish(io, posix_file_execute(io));
}

static void uring_start(struct backend *backend, struct file_io *io)
{
    if (io->kind == FILE_TRUNCATE || io->kind == FILE_EXTENTS)
        start_aside(uring_of(backend), io);
    else
        enqueue(uring_of(backend), io);
}

static void prepare_read_or_write(struct io_uring_sqe *sqe, const struct file_io *io)
{
    const struct posix_file *f = posix_file_of(io);
    uint64_t offset = io->offset + io->progress;
    struct iovec rest[FILE_IOV_MAX];
    int count = posix_file_rest(io, rest);

    // The remaining buffers of a request that was cut short go one by one: a list of them would
    // have to stay in memory until the kernel has read it.
    if (count == 1 || io->progress > 0) {
        unsigned length =
            (unsigned)(rest[0].iov_len < CALL_BYTES_MAX ? rest[0].iov_len : CALL_BYTES_MAX);

        if (io->kind == FILE_READ)
            io_uring_prep_read(sqe, f->fd, rest[0].iov_base, length, offset);
        else
            io_uring_prep_write(sqe, f->fd, rest[0].iov_base, length, offset);
    } else if (io->kind == FILE_READ) {
        io_uring_prep_readv(sqe, f->fd, io->iov, (unsigned)io->iovcnt, offset);
    } else {
        io_uring_prep_writev(sqe, f->fd, io->iov, (unsigned)io->iovcnt, offset);
    }
}

static void prepare(struct uring *u, struct io_uring_sqe *sqe, struct file_io *io)
{
    const struct posix_file *f = posix_file_of(io);
    bool async = f->always_async;

    switch (io->kind) {
    case FILE_READ:
        prepare_read_or_write(sqe, io);
        // Direct reads copy nothing and only have to be started.
        async = async ||
                (!f->direct && !backend_admit_inline(&u->backend, io->length, INLINE_READ_MAX));
        break;
    case FILE_WRITE:
        prepare_read_or_write(sqe, io);
        // A buffered write comes here only because this thread must not make it.
        async = async || !f->direct;
        break;
    case FILE_DATASYNC:
        io_uring_prep_fsync(sqe, f->fd, IORING_FSYNC_DATASYNC);
        break;
    case FILE_ZERO:
    case FILE_PUNCH:
    case FILE_ALLOCATE:
        io_uring_prep_fallocate(sqe, f->fd, posix_file_fallocate_mode(io->kind), (off_t)io->offset,
                                (off_t)io->length);
        break;
    case FILE_TRUNCATE:
    case FILE_EXTENTS:
        abort(); // such requests are never queued
    }
    if (async)
        sqe->flags |= IOSQE_ASYNC;
    io_uring_sqe_set_data(sqe, io);
}

// Makes the ring complete when the threads aside have completed something. Returns how many entries
// were filled. The entry has no data and is not counted as in flight.
static unsigned poll_aside(struct uring *u)
{
    if (u->aside == NULL || u->polling)
        return 0;

    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (sqe == NULL)
        return 0;
    io_uring_prep_poll_add(sqe, u->aside->fd, POLLIN);
    io_uring_sqe_set_data(sqe, NULL);
    u->polling = true;
    return 1;
}

// Fills the submission ring from the queue. Returns how many entries were filled.
static unsigned file_uring_fill(struct uring *u)
{
    unsigned count = poll_aside(u);

    while (u->queued_count > 0 && u->in_flight < u->in_flight_max) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

        if (sqe == NULL)
            break;
        prepare(u, sqe, dequeue(u));
        u->in_flight++;
        count++;
    }
    return count;
}

static void finish_or_requeue(struct uring *u, struct file_io *io, int answer)
{
    struct posix_file *f = posix_file_of(io);
    int result;

    if (answer == -EAGAIN && !f->always_async) {
        // Some drivers and file systems answer EAGAIN instead of letting io_uring wait.
        f->always_async = true;
        enqueue(u, io);
    } else if (answer == -ECANCELED) {
        // Nothing cancels requests here, so the kernel has lost its last worker and cannot start
        // another. Waiting here for the disk is bad; telling a client that its disk is broken is
        // worse.
        posix_file_finish(io, posix_file_execute(io));
    } else if (posix_file_advance(io, answer, &result)) {
        posix_file_finish(io, result);
    } else {
        enqueue(u, io);
    }
}

static void reap(struct uring *u)
{
    struct io_uring_cqe *cqe;
    unsigned head;
    unsigned count = 0;

    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        struct file_io *io = io_uring_cqe_get_data(cqe);

        count++;
        if (io == NULL) {
            u->polling = false;
            u->aside->ops->turn(u->aside);
            continue;
        }
        if ((void *)io == &u->worker_result) {
            u->worker_result = cqe->res;
            continue;
        }
        assert(u->in_flight > 0);
        u->in_flight--;
        finish_or_requeue(u, io, cqe->res);
    }
    io_uring_cq_advance(&u->ring, count);
}

// Submits the filled entries, and waits for wait_count completions.
static void file_uring_submit(struct uring *u, unsigned wait_count)
{
    do {
        int result = io_uring_submit_and_wait(&u->ring, wait_count);

        if (result >= 0 || result == -EINTR)
            continue;
        if (result != -EAGAIN && result != -EBUSY && result != -ENOMEM) {
            // This ring was usable before, and the entries are valid.
            fprintf(stderr, "%slazycow: io_uring_enter: %s\n",
                    log_prefix(STDERR_FILENO, LOG_LEVEL_ERROR), strerror(-result));
            abort();
        }
        if (io_uring_cq_ready(&u->ring) == 0) {
            const struct timespec pause = {.tv_nsec = NO_MEMORY_PAUSE_NS};

            nanosleep(&pause, NULL);
        }
        reap(u);
    } while (io_uring_sq_ready(&u->ring) > 0);
}

// A single read of cached data is cheaper without the ring: 1.4 us against 1.6.
static void try_single_read(struct uring *u)
{
    struct file_io *io = file_io_of(STAILQ_FIRST(&u->queued));
    int result;

    if (io->kind == FILE_READ && io->length <= INLINE_READ_MAX && posix_file_try_read(io, &result))
        posix_file_finish(dequeue(u), result);
}

static void uring_turn(struct backend *backend)
{
    struct uring *u = uring_of(backend);

    if (u->queued_count == 1)
        try_single_read(u);
    reap(u);
    while (file_uring_fill(u) > 0) {
        file_uring_submit(u, 0);
        reap(u);
    }
}

static void uring_wait(struct backend *backend)
{
    struct uring *u = uring_of(backend);

    uring_turn(backend);
    while (runq_empty(backend->runq)) {
        file_uring_fill(u);
        assert(u->in_flight > 0 || u->polling);
        file_uring_submit(u, 1);
        reap(u);
    }
}

static void uring_free(struct backend *backend)
{
    struct uring *u = uring_of(backend);

    assert(u->in_flight == 0 && u->queued_count == 0);
    io_uring_queue_exit(&u->ring);
    if (u->aside != NULL)
        u->aside->ops->free(u->aside);
    free(u);
}

// Makes the kernel start a worker, without which it would cancel requests that cannot be done at
// once. The kernel keeps its last worker; if it refuses others later, requests wait. Requests in
// flight, such as a recovery's reads, continue meanwhile.
static int uring_prepare(struct backend *backend, struct error *err)
{
    struct uring *u = uring_of(backend);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    int result = 0;

    // All filled entries have been submitted, so one is free.
    assert(sqe != NULL);
    io_uring_prep_nop(sqe);
    sqe->flags |= IOSQE_ASYNC;
    io_uring_sqe_set_data(sqe, &u->worker_result);
    u->worker_result = WORKER_STARTS;
    while (result >= 0 && u->worker_result == WORKER_STARTS) {
        result = io_uring_submit_and_wait(&u->ring, 1);
        if (result == -EINTR)
            result = 0;
        reap(u);
    }
    if (result >= 0)
        result = u->worker_result;
    if (result < 0)
        return error_set(err, -result, "io_uring: the kernel starts no worker (%s); %s",
                         strerror(-result), threads_advice());
    return 0;
}

static const struct backend_ops uring_ops = {
    .name = "io_uring",
    .start = uring_start,
    .turn = uring_turn,
    .wait = uring_wait,
    .prepare = uring_prepare,
    .free = uring_free,
};

static bool has_operations(struct io_uring *ring)
{
    static const int needed[] = {IORING_OP_READ,    IORING_OP_WRITE, IORING_OP_READV,
                                 IORING_OP_WRITEV,  IORING_OP_FSYNC, IORING_OP_FALLOCATE,
                                 IORING_OP_POLL_ADD};
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool all = probe != NULL;

    for (size_t i = 0; all && i < sizeof(needed) / sizeof(needed[0]); i++)
        all = io_uring_opcode_supported(probe, needed[i]);
    io_uring_free_probe(probe);
    return all;
}

static int set_up_ring(struct io_uring *ring, unsigned *completion_entries)
{
    // Completions need not interrupt this thread, which looks for them after each system call.
    struct io_uring_params params = {.flags = IORING_SETUP_COOP_TASKRUN};
    int result = io_uring_queue_init_params(RING_ENTRIES, ring, &params);

    if (result == -EINVAL) { // before Linux 5.19
        params = (struct io_uring_params){0};
        result = io_uring_queue_init_params(RING_ENTRIES, ring, &params);
    }
    *completion_entries = params.cq_entries;
    return result;
}

struct backend *backend_uring_new(struct runq *runq, struct error *err)
{
    struct uring *u = calloc(1, sizeof(*u));

    if (u == NULL) {
        error_set(err, ENOMEM, "io_uring: out of memory");
        return NULL;
    }

    int result = set_up_ring(&u->ring, &u->in_flight_max);
    if (result < 0) {
        error_set(err, -result, "io_uring is not available here (%s); use threads",
                  strerror(-result));
        free(u);
        return NULL;
    }
    if (!has_operations(&u->ring)) {
        error_set(err, ENOSYS, "io_uring of this kernel is too old (needs Linux 5.6); use threads");
        io_uring_queue_exit(&u->ring);
        free(u);
        return NULL;
    }
    u->backend = (struct backend){.ops = &uring_ops, .runq = runq, .fd = u->ring.ring_fd};
    STAILQ_INIT(&u->queued);
    return &u->backend;
}
