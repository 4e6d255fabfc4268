// SPDX-License-Identifier: Apache-2.0
// threads.h: threads that take tasks from a list, work on them and hand them back. libuv's own pool
// ends the process when a thread cannot be started; here one is there from the beginning, and the
// others are started when there is work for them and the host allows it.
#ifndef LAZYCOW_SERVER_THREADS_H
#define LAZYCOW_SERVER_THREADS_H

#include <stddef.h>
#include <sys/queue.h>

#include "qcow2/base/error.h"
#include "qcow2/base/runq.h"

// Tasks linked through task.link, which are in no run queue meanwhile.
STAILQ_HEAD(task_list, task);

struct threads;

struct threads_options {
    const char *name;                // for messages
    void (*work)(struct task *task); // runs on any of the threads, for each task once
    unsigned max;                    // threads
    size_t stack_bytes;
};

// Starts the first thread. Returns NULL with a message that names the limits when none can be had.
struct threads *threads_new(const struct threads_options *options, struct error *err);

// Readable when threads_collect() would find something. Owned by threads: do not read it.
int threads_fd(const struct threads *threads);

// Has a thread work on the task. The owner's thread calls this and what follows.
void threads_give(struct threads *threads, struct task *task);

// Appends the tasks that were worked on to the list. Never waits; no system call when there is none.
void threads_collect(struct threads *threads, struct task_list *done);

// Waits until there is something to collect. Something must have been given.
void threads_wait(struct threads *threads);

// Ends the threads. All tasks must be collected. NULL is allowed.
void threads_free(struct threads *threads);

// The advice for an error of pthread_create(), to be appended to a message.
const char *threads_advice(void);

#endif
