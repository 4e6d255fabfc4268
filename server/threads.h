// SPDX-License-Identifier: Apache-2.0
// threads.h: threads that take tasks from a list, work on them and hand them back. libuv's pool
// ends the process when a thread cannot be started; here one runs from the beginning, and others
// start when there is work for them and the host allows it.
#ifndef LAZYCOW_SERVER_THREADS_H
#define LAZYCOW_SERVER_THREADS_H

#include <stddef.h>
#include <sys/queue.h>

#include "qcow2/base/error.h"
#include "qcow2/base/runq.h"

// Tasks linked through task.link; a task here is in no run queue.
STAILQ_HEAD(task_list, task);

struct threads;

struct threads_options {
    const char *name; // for messages
    // Runs once for each task, on any of the threads.
    void (*work)(struct task *task);
    unsigned max; // most threads
    size_t stack_bytes;
};

// Starts the first thread. Returns NULL, with a message that names the limits, if none can be
// started.
struct threads *threads_new(const struct threads_options *options, struct error *err);

// Readable when threads_collect() would find a task. Owned by threads: do not read from it.
int threads_fd(const struct threads *threads);

// Has a thread work on the task. Like the functions below, it is for the owner's thread.
void threads_give(struct threads *threads, struct task *task);

// Appends the finished tasks to done. Never waits; makes no system call when there are none.
void threads_collect(struct threads *threads, struct task_list *done);

// Waits until there is a task to collect. At least one must be outstanding.
void threads_wait(struct threads *threads);

// Ends the threads. All tasks must have been collected. NULL is allowed.
void threads_free(struct threads *threads);

// Returns the advice for an error of pthread_create(), to be appended to a message.
const char *threads_advice(void);

#endif
