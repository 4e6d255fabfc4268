// SPDX-License-Identifier: Apache-2.0
// runq.h: the run queue. Tasks that completed or were woken wait here for their turn. The owner of
// the thread (the server's loop, the simulator, a blocking command) runs the queue. This keeps
// completions out of submit calls and recursion out of step functions.
#ifndef LAZYCOW_QCOW2_BASE_RUNQ_H
#define LAZYCOW_QCOW2_BASE_RUNQ_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/queue.h>

struct task;
typedef void task_run(struct task *task);

// Embedded in its owner. A task is in at most one queue at a time.
struct task {
    task_run *run;
    bool queued;
    STAILQ_ENTRY(task) link;
};

struct runq {
    STAILQ_HEAD(, task) tasks;
    size_t count; // tasks in the queue
};

void runq_init(struct runq *rq);

// Appends the task, which must not be queued. Its run function is called later, never from here.
void runq_post(struct runq *rq, struct task *task);

bool runq_empty(const struct runq *rq);

// Runs the tasks that are queued now. Tasks that are posted meanwhile stay for the next call.
// Returns true if a task ran: call it again until it returns false to drain the queue.
bool runq_run(struct runq *rq);

#endif
