// SPDX-License-Identifier: Apache-2.0
#include "server/loop_workers.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <uv.h>

#include "qcow2/base/container.h"
#include "server/threads.h"

// Threads, as many as in libuv's pool, which serves the same mixture of short computations.
#define WORKERS_MAX 4u

// Stack of a thread: GnuTLS and GMP put big numbers on it, at most 64 KiB; sanitizers enlarge
// frames.
#define WORKERS_STACK_BYTES (1u << 20)

struct loop_workers_poll {
    uv_poll_t handle;
};

static struct offload_job *job_of(struct task *task)
{
    return container_of(task, struct offload_job, task);
}

static void loop_workers_work(struct task *task)
{
    struct offload_job *job = job_of(task);

    job->work(job);
}

int loop_workers_open(struct loop_workers *workers, struct error *err)
{
    const struct threads_options options = {
        .name = "workers",
        .work = loop_workers_work,
        .max = WORKERS_MAX,
        .stack_bytes = WORKERS_STACK_BYTES,
    };

    workers->threads = threads_new(&options, err);
    return workers->threads != NULL ? 0 : -EAGAIN;
}

void loop_workers_close(struct loop_workers *workers)
{
    assert(workers->running == 0);
    threads_free(workers->threads);
    workers->threads = NULL;
}

static void loop_workers_collect(struct loop_workers *workers)
{
    struct task_list done = STAILQ_HEAD_INITIALIZER(done);
    struct task *task;

    threads_collect(workers->threads, &done);
    while ((task = STAILQ_FIRST(&done)) != NULL) {
        STAILQ_REMOVE_HEAD(&done, link);
        workers->running--;
        runq_post(workers->runq, task);
    }
}

static void on_done(uv_poll_t *handle, int status, int events)
{
    (void)status;
    (void)events;
    loop_workers_collect(handle->data);
}

int loop_workers_attach(struct loop_workers *workers, struct uv_loop_s *loop)
{
    struct loop_workers_poll *poll = malloc(sizeof(*poll));
    int result;

    if (poll == NULL) {
        return -ENOMEM;
    }
    result = uv_poll_init(loop, &poll->handle, threads_fd(workers->threads));
    if (result < 0) {
        free(poll);
        return result;
    }
    poll->handle.data = workers;
    uv_poll_start(&poll->handle, UV_READABLE, on_done);
    workers->poll = poll;
    return 0;
}

static void on_closed(uv_handle_t *handle)
{
    free(container_of(handle, struct loop_workers_poll, handle));
}

void loop_workers_give(struct loop_workers *workers, struct offload_job *job)
{
    workers->running++;
    threads_give(workers->threads, &job->task);
}

void loop_workers_wait(struct loop_workers *workers)
{
    while (workers->running > 0) {
        threads_wait(workers->threads);
        loop_workers_collect(workers);
    }
}

void loop_workers_detach(struct loop_workers *workers)
{
    loop_workers_wait(workers);
    uv_close((uv_handle_t *)&workers->poll->handle, on_closed);
    workers->poll = NULL;
}

void loop_workers_run(struct loop_workers *workers, struct offload_job *job)
{
    if (workers->poll != NULL) {
        loop_workers_give(workers, job);
        return;
    }
    job->work(job);
    runq_post(workers->runq, &job->task);
}
