// SPDX-License-Identifier: Apache-2.0
#include "server/start_watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "qcow2/base/container.h"
#include "server/loop_workers.h"

// Runs on a worker thread.
static void watch_signals(struct offload_job *job)
{
    static const char line[] = "lazycow: stopped before anything was served\n";
    const struct start_watch *watch = container_of(job, struct start_watch, job);
    struct pollfd fds[] = {{.fd = watch->signal_fd, .events = POLLIN},
                           {.fd = watch->end_fd, .events = POLLIN}};

    while (poll(fds, 2, -1) < 0 && errno == EINTR) {
    }
    if (fds[0].revents != 0) {
        (void)!write(STDERR_FILENO, line, sizeof(line) - 1);
        // Ends the main thread, too, while it waits in the kernel for a file system: there a signal
        // with a handler does not end the system call.
        _exit(0);
    }
}

static void on_ended(struct task *task)
{
    (void)task;
}

int start_watch_begin(struct start_watch *watch, struct loop_workers *workers, struct error *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    watch->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (watch->signal_fd < 0) {
        return error_set(err, errno, "cannot receive signals: %s", strerror(errno));
    }
    watch->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (watch->end_fd < 0) {
        close(watch->signal_fd);
        return error_set(err, errno, "cannot receive signals: %s", strerror(errno));
    }
    watch->workers = workers;
    watch->job = (struct offload_job){.work = watch_signals, .task = {.run = on_ended}};
    loop_workers_give(workers, &watch->job);
    return 0;
}

void start_watch_end(struct start_watch *watch)
{
    if (watch->workers == NULL) {
        return;
    }
    eventfd_write(watch->end_fd, 1);
    loop_workers_wait(watch->workers);
    watch->workers = NULL;
    close(watch->signal_fd);
    close(watch->end_fd);
}
