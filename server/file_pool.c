// SPDX-License-Identifier: Apache-2.0
// The thread backend, for hosts and containers that refuse io_uring: threads make the blocking
// calls. Everything else, including the files' state, belongs to the loop's thread.
#include "server/file_posix.h"

#include <errno.h>
#include <stdlib.h>

#include "server/threads.h"

// Most threads; they are started when all others are busy, and kept. This limits the queue depth of
// direct I/O, and disks reach their limit before.
#define POOL_THREADS_MAX 32u

// Stack of a thread, which makes system calls with only a list of buffers on the stack.
#define POOL_STACK_BYTES (256u << 10)

struct pool {
    struct backend backend; // first member
    struct threads *threads;
};

static struct pool *pool_of(struct backend *backend)
{
    return (struct pool *)backend;
}

static void file_pool_work(struct task *task)
{
    struct file_io *io = file_io_of(task);

    io->outcome = posix_file_execute(io);
}

static void pool_start(struct backend *backend, struct file_io *io)
{
    threads_give(pool_of(backend)->threads, &io->task);
}

static void pool_turn(struct backend *backend)
{
    struct task_list done = STAILQ_HEAD_INITIALIZER(done);
    struct task *task;

    threads_collect(pool_of(backend)->threads, &done);
    while ((task = STAILQ_FIRST(&done)) != NULL) {
        STAILQ_REMOVE_HEAD(&done, link);
        posix_file_finish(file_io_of(task), file_io_of(task)->outcome);
    }
}

static void pool_wait(struct backend *backend)
{
    for (;;) {
        pool_turn(backend);
        if (!runq_empty(backend->runq))
            return;
        threads_wait(pool_of(backend)->threads);
    }
}

static void pool_free(struct backend *backend)
{
    struct pool *p = pool_of(backend);

    threads_free(p->threads);
    free(p);
}

static const struct backend_ops pool_ops = {
    .name = "threads",
    .inline_reads = true,
    .start = pool_start,
    .turn = pool_turn,
    .wait = pool_wait,
    .free = pool_free,
};

struct backend *backend_pool_new(struct runq *runq, struct error *err)
{
    const struct threads_options options = {
        .name = "file access",
        .work = file_pool_work,
        .max = POOL_THREADS_MAX,
        .stack_bytes = POOL_STACK_BYTES,
    };
    struct pool *p = calloc(1, sizeof(*p));

    if (p == NULL) {
        error_set(err, ENOMEM, "thread pool: out of memory");
        return NULL;
    }
    p->threads = threads_new(&options, err);
    if (p->threads == NULL) {
        free(p);
        return NULL;
    }
    p->backend = (struct backend){.ops = &pool_ops, .runq = runq, .fd = threads_fd(p->threads)};
    return &p->backend;
}
