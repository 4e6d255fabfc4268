// SPDX-License-Identifier: Apache-2.0
// Tasks change hands under one mutex; an eventfd notifies the owner.
#include "server/threads.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct threads {
    struct threads_options options;
    int fd;
    // Threads that were started.
    unsigned count;
    // Tasks given and not yet collected.
    size_t outstanding;

    // Guards the fields below.
    pthread_mutex_t mutex;
    pthread_cond_t given;
    struct task_list tasks;
    struct task_list done;
    size_t task_count;
    // Threads that wait, or are being started or woken.
    unsigned idle;
    bool stopping;
    // True while done is not empty; also read without the mutex.
    atomic_bool has_done;

    pthread_t ids[]; // options.max elements
};

static void *threads_run(void *argument)
{
    struct threads *t = argument;

    pthread_mutex_lock(&t->mutex);
    for (;;) {
        struct task *task;

        while (STAILQ_EMPTY(&t->tasks) && !t->stopping) {
            pthread_cond_wait(&t->given, &t->mutex);
        }
        if (t->stopping) {
            break;
        }
        t->idle--;
        task = STAILQ_FIRST(&t->tasks);
        STAILQ_REMOVE_HEAD(&t->tasks, link);
        t->task_count--;
        pthread_mutex_unlock(&t->mutex);

        t->options.work(task);

        pthread_mutex_lock(&t->mutex);
        t->idle++;
        STAILQ_INSERT_TAIL(&t->done, task, link);
        if (!atomic_load(&t->has_done)) {
            atomic_store(&t->has_done, true);
            // Neither fails nor blocks: the counter is reset before it is raised again.
            eventfd_write(t->fd, 1);
        }
    }
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

static void add_idle(struct threads *t, int change)
{
    pthread_mutex_lock(&t->mutex);
    t->idle = (unsigned)((int)t->idle + change);
    pthread_mutex_unlock(&t->mutex);
}

// Starts a thread with all signals blocked: they are for the main thread. Returns 0 or a negative
// errno.
static int start_thread(struct threads *t)
{
    sigset_t all;
    sigset_t old;
    pthread_attr_t attributes;
    int result;

    add_idle(t, 1);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, t->options.stack_bytes);
    result = pthread_create(&t->ids[t->count], &attributes, threads_run, t);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (result == 0) {
        t->count++;
    } else {
        add_idle(t, -1);
    }
    return -result;
}

const char *threads_advice(void)
{
    return "raise the limit of processes (ulimit -u, TasksMax= of a unit, pids.max of a "
           "container) or of memory (ulimit -v)";
}

struct threads *threads_new(const struct threads_options *options, struct error *err)
{
    struct threads *t = calloc(1, sizeof(*t) + options->max * sizeof(t->ids[0]));
    int result;

    assert(options->max > 0);
    if (t == NULL) {
        error_set(err, ENOMEM, "%s: out of memory", options->name);
        return NULL;
    }
    t->options = *options;
    STAILQ_INIT(&t->tasks);
    STAILQ_INIT(&t->done);
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->given, NULL);

    t->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (t->fd < 0) {
        error_set(err, errno, "%s: %s", options->name, strerror(errno));
        threads_free(t);
        return NULL;
    }
    result = start_thread(t);
    if (result < 0) {
        error_set(err, -result, "%s: no thread can be started (%s); %s", options->name,
                  strerror(-result), threads_advice());
        threads_free(t);
        return NULL;
    }
    return t;
}

int threads_fd(const struct threads *threads)
{
    return threads->fd;
}

void threads_give(struct threads *t, struct task *task)
{
    bool short_of_threads;

    t->outstanding++;
    pthread_mutex_lock(&t->mutex);
    STAILQ_INSERT_TAIL(&t->tasks, task, link);
    t->task_count++;
    short_of_threads = t->task_count > t->idle;
    pthread_cond_signal(&t->given);
    pthread_mutex_unlock(&t->mutex);
    // If no thread can be started, the task waits for one that runs: there is always one.
    if (short_of_threads && t->count < t->options.max) {
        (void)start_thread(t);
    }
}

void threads_collect(struct threads *t, struct task_list *done)
{
    struct task_list found = STAILQ_HEAD_INITIALIZER(found);
    struct task *task;
    eventfd_t count;

    if (!atomic_load(&t->has_done)) {
        return;
    }
    pthread_mutex_lock(&t->mutex);
    STAILQ_CONCAT(&found, &t->done);
    atomic_store(&t->has_done, false);
    eventfd_read(t->fd, &count);
    pthread_mutex_unlock(&t->mutex);

    STAILQ_FOREACH (task, &found, link) {
        assert(t->outstanding > 0);
        t->outstanding--;
    }
    STAILQ_CONCAT(done, &found);
}

void threads_wait(struct threads *t)
{
    struct pollfd pollfd = {.fd = t->fd, .events = POLLIN};

    assert(t->outstanding > 0);
    while (!atomic_load(&t->has_done)) {
        poll(&pollfd, 1, -1);
    }
}

void threads_free(struct threads *t)
{
    if (t == NULL) {
        return;
    }
    assert(t->outstanding == 0);
    pthread_mutex_lock(&t->mutex);
    t->stopping = true;
    pthread_cond_broadcast(&t->given);
    pthread_mutex_unlock(&t->mutex);
    for (unsigned i = 0; i < t->count; i++) {
        pthread_join(t->ids[i], NULL);
    }
    pthread_cond_destroy(&t->given);
    pthread_mutex_destroy(&t->mutex);
    if (t->fd >= 0) {
        close(t->fd);
    }
    free(t);
}
