// SPDX-License-Identifier: Apache-2.0
// The thread backend, for hosts and containers that refuse io_uring: workers make the blocking
// calls, an eventfd tells the loop. Requests and results cross under one mutex; everything else,
// the files' state too, belongs to the loop's thread.
#include "server/file_posix.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

// Most threads, started when all others are busy and kept then. That is the queue depth of direct
// I/O; disks are at their limit before it.
#define POOL_THREADS_MAX 32u

// Workers make system calls with nothing but a list of buffers on their stack.
#define POOL_STACK_BYTES (256u << 10)

struct pool {
    struct backend backend; // first member
    pthread_t threads[POOL_THREADS_MAX];
    unsigned thread_count;

    pthread_mutex_t mutex; // guards what follows
    pthread_cond_t work;
    struct io_list jobs;
    struct io_list done;
    size_t job_count;
    unsigned idle; // threads that wait, or are being woken
    bool stopping;
    atomic_bool has_done; // also read without the mutex: whether done has anything
};

static struct pool *pool_of(struct backend *backend)
{
    return (struct pool *)backend;
}

static void *work(void *argument)
{
    struct pool *p = argument;

    pthread_mutex_lock(&p->mutex);
    for (;;) {
        p->idle++;
        while (STAILQ_EMPTY(&p->jobs) && !p->stopping)
            pthread_cond_wait(&p->work, &p->mutex);
        p->idle--;
        if (p->stopping)
            break;

        struct file_io *io = file_io_of(STAILQ_FIRST(&p->jobs));
        STAILQ_REMOVE_HEAD(&p->jobs, link);
        p->job_count--;
        pthread_mutex_unlock(&p->mutex);

        int result = posix_file_execute(io);

        pthread_mutex_lock(&p->mutex);
        io->result = result;
        STAILQ_INSERT_TAIL(&p->done, &io->task, link);
        if (!atomic_load(&p->has_done)) {
            atomic_store(&p->has_done, true);
            // Cannot fail or block: the counter is read before it is raised again.
            eventfd_write(p->backend.fd, 1);
        }
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

// Signals are for the main thread. Returns 0 or a negative errno.
static int start_thread(struct pool *p)
{
    sigset_t all;
    sigset_t old;
    pthread_attr_t attributes;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, POOL_STACK_BYTES);
    int result = pthread_create(&p->threads[p->thread_count], &attributes, work, p);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (result == 0)
        p->thread_count++;
    return -result;
}

static void pool_start(struct backend *backend, struct file_io *io)
{
    struct pool *p = pool_of(backend);

    pthread_mutex_lock(&p->mutex);
    STAILQ_INSERT_TAIL(&p->jobs, &io->task, link);
    p->job_count++;
    bool short_of_threads = p->job_count > p->idle;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->mutex);
    // When no thread can be had the job waits for one of those that run: there is always one.
    if (short_of_threads && p->thread_count < POOL_THREADS_MAX)
        start_thread(p);
}

static void pool_turn(struct backend *backend)
{
    struct pool *p = pool_of(backend);
    struct io_list done = STAILQ_HEAD_INITIALIZER(done);
    eventfd_t count;

    if (!atomic_load(&p->has_done))
        return;
    pthread_mutex_lock(&p->mutex);
    STAILQ_CONCAT(&done, &p->done);
    atomic_store(&p->has_done, false);
    eventfd_read(backend->fd, &count);
    pthread_mutex_unlock(&p->mutex);

    struct task *task;
    while ((task = STAILQ_FIRST(&done)) != NULL) {
        STAILQ_REMOVE_HEAD(&done, link);
        posix_file_finish(file_io_of(task), file_io_of(task)->result);
    }
}

static void pool_wait(struct backend *backend)
{
    struct pollfd pollfd = {.fd = backend->fd, .events = POLLIN};

    for (;;) {
        pool_turn(backend);
        if (!runq_empty(backend->runq))
            return;
        poll(&pollfd, 1, -1);
    }
}

static void pool_free(struct backend *backend)
{
    struct pool *p = pool_of(backend);

    assert(STAILQ_EMPTY(&p->jobs) && STAILQ_EMPTY(&p->done));
    pthread_mutex_lock(&p->mutex);
    p->stopping = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mutex);
    for (unsigned i = 0; i < p->thread_count; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->mutex);
    if (backend->fd >= 0)
        close(backend->fd);
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
    struct pool *p = calloc(1, sizeof(*p));

    if (p == NULL) {
        error_set(err, ENOMEM, "thread pool: out of memory");
        return NULL;
    }
    p->backend = (struct backend){.ops = &pool_ops, .runq = runq};
    STAILQ_INIT(&p->jobs);
    STAILQ_INIT(&p->done);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->work, NULL);

    p->backend.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int result = p->backend.fd < 0 ? -errno : start_thread(p);
    if (result < 0) {
        error_set(err, -result, "thread pool: %s", strerror(-result));
        pool_free(&p->backend);
        return NULL;
    }
    return &p->backend;
}
