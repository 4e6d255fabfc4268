// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // RUSAGE_THREAD
#include "server/loop.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

// Nanoseconds for which the queue and the backend run before descriptors are polled again, so that
// requests that complete at once (cached reads of a deep queue, recovery) do not keep new ones out.
// Well above the length of a busy turn, well below what a client notices.
#define LOOP_DRAIN_NS 1000000
// Rounds of sending replies, and starting requests that they made room for, before descriptors are
// polled again.
#define LOOP_TURN_ROUNDS 4
// A client is alone, and waits for each reply, after this many requests in a row that came while
// nothing was in flight, and this long after the last one that did not. The time is long, so that a
// second client that asks seldom is not forgotten between two of its requests.
#define LOOP_ALONE 32u
#define LOOP_ALONE_NS 1000000000ull
// A call of sched_yield() that takes longer than this many nanoseconds has let another thread run;
// otherwise it takes less than a microsecond.
#define LOOP_CROWDED_NS 5000u

// Nanoseconds between two looks for the next request: the cost of a look, so that requests are
// found late by less than that, and half of the system calls are saved.
#define LOOP_RELAX_NS 1000u
// Pause instructions between two looks at the clock.
#define LOOP_RELAX_ROUND 4

int loop_block_signals(void)
{
    sigset_t set;
    int fd;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0) {
        return -errno;
    }
    fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return fd >= 0 ? fd : -errno;
}

// Runs the queue and the backend until nothing more happens by itself, or until end. Returns true
// in the first case.
static bool loop_drain(struct loop *loop, uint64_t end)
{
    do {
        runq_run(loop->runq);
        backend_turn(loop->backend);
        if (runq_empty(loop->runq)) {
            return true;
        }
    } while (uv_hrtime() < end);
    return false;
}

// Returns how often another thread has taken the processor from this one.
static long times_displaced(void)
{
    struct rusage usage;

    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
}

// Offers the processor to other threads. Returns true if one took it.
static bool loop_yield(struct loop *loop)
{
    uint64_t begin = uv_hrtime();
    long displaced;

    sched_yield();
    // Time alone proves nothing: it may be that of an interrupt, or of the host's other guests.
    if (uv_hrtime() - begin < LOOP_CROWDED_NS) {
        return false;
    }
    displaced = loop->displaced;
    loop->displaced = times_displaced();
    return loop->displaced != displaced;
}

// Lets some time pass without slowing the sibling of a hyperthreaded processor.
static void relax(void)
{
    uint64_t begin = uv_hrtime();

    do {
        for (int i = 0; i < LOOP_RELAX_ROUND; i++) {
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            __asm__ volatile("yield");
#endif
        }
    } while (uv_hrtime() - begin < LOOP_RELAX_NS);
}

// Runs ahead of each poll that must not wait.
static void on_again(uv_idle_t *handle)
{
    struct loop *loop = handle->data;

    if (loop->wait != LOOP_LOOKS) {
        return;
    }
    // The client may be waiting for this very processor: it is offered soon, then less and less
    // often.
    loop->looks++;
    if ((loop->looks & (loop->looks - 1)) != 0) {
        relax();
    } else if (loop_yield(loop)) {
        loop_spin_crowded(&loop->spin);
    }
}

// Returns how many descriptors the poll would find ready; it counts at most two.
static int count_ready(struct loop *loop)
{
    struct epoll_event events[2];

    return epoll_wait(uv_backend_fd(&loop->uv), events, 2, 0);
}

// Returns bits of enum loop_turn; LOOP_MORE: work is left.
static unsigned take_turns(struct loop *loop, uint64_t begin)
{
    unsigned all = 0;

    for (int i = 0; i < LOOP_TURN_ROUNDS; i++) {
        bool quiet = loop_drain(loop, begin + LOOP_DRAIN_NS);
        int ready = backend_has_blocked(loop->backend) ? count_ready(loop) : 0;
        unsigned turn = loop->owner.turn(loop->owner.context);
        // A peeked request stays in the socket until its reply has left, and must not count as a
        // second one.
        int answered = turn & LOOP_PEEKED ? 1 : 0;

        all |= ready > answered ? LOOP_OVERLAPPED : 0;
        all |= turn & ~(unsigned)LOOP_MORE;
        if (!quiet) {
            break;
        }
        // Replies that were sent may have released memory that other requests wait for.
        if ((turn & LOOP_MORE) == 0 && runq_empty(loop->runq)) {
            return all;
        }
    }
    return all | LOOP_MORE;
}

static void on_check(uv_check_t *handle)
{
    struct loop *loop = handle->data;
    uint64_t begin = uv_hrtime();
    unsigned turn = take_turns(loop, begin);
    uint64_t now = uv_hrtime();

    if (turn & LOOP_RECEIVED) {
        loop_spin_received(&loop->spin, begin);
    }
    if (turn & LOOP_OVERLAPPED) {
        loop->alone = 0;
        loop->overlapped_at = now;
    } else if ((turn & LOOP_RECEIVED) && loop->alone < LOOP_ALONE) {
        loop->alone++;
    }
    backend_set_alone(loop->backend,
                      loop->alone == LOOP_ALONE && now - loop->overlapped_at > LOOP_ALONE_NS);
    if (turn & LOOP_SENT) {
        loop_spin_replied(&loop->spin, now);
        loop->looks = 0;
    }
    if (turn & LOOP_MORE) {
        loop->wait = LOOP_GOES_ON;
    } else {
        loop->wait = loop_spin_look(&loop->spin, now) ? LOOP_LOOKS : LOOP_SLEEPS;
    }
    if (loop->wait == LOOP_SLEEPS) {
        uv_idle_stop(&loop->again);
    } else {
        uv_idle_start(&loop->again, on_again);
    }
}

static void on_backend(uv_poll_t *handle, int status, int events)
{
    // The turn that follows reaps the completed requests.
    (void)handle;
    (void)status;
    (void)events;
}

static void on_signal(uv_poll_t *handle, int status, int events)
{
    struct loop *loop = handle->data;
    struct signalfd_siginfo info;
    bool stop = false;
    bool hung_up = false;
    bool asked = false;

    (void)status;
    (void)events;
    while (read(loop->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGHUP) {
            hung_up = true;
        } else if (info.ssi_signo == SIGUSR1) {
            asked = true;
        } else {
            stop = true;
        }
    }
    if (hung_up) {
        loop->owner.hung_up(loop->owner.context);
    }
    if (asked) {
        loop->owner.dump(loop->owner.context);
    }
    if (stop) {
        loop->owner.signalled(loop->owner.context);
    }
}

static void on_timer(uv_timer_t *handle)
{
    struct loop *loop = handle->data;

    if (!loop->owner.tick(loop->owner.context, uv_now(&loop->uv))) {
        uv_timer_stop(handle);
    }
    // The tick may have started an op, and timers run before the poll: the poll must not wait.
    loop->wait = LOOP_GOES_ON;
    uv_idle_start(&loop->again, on_again);
}

int loop_init(struct loop *loop, struct runq *runq, struct backend *backend, int signal_fd,
              uint64_t poll_max_ns, const struct loop_owner *owner, struct error *err)
{
    int result = uv_loop_init(&loop->uv);

    if (result < 0) {
        return error_set(err, -result, "cannot make the event loop: %s", uv_strerror(result));
    }
    loop->runq = runq;
    loop->backend = backend;
    loop->owner = *owner;
    loop->signal_fd = signal_fd;
    loop->wait = LOOP_SLEEPS;
    loop->looks = 0;
    loop->alone = 0;
    loop->overlapped_at = 0;
    loop->displaced = times_displaced();
    loop_spin_init(&loop->spin, poll_max_ns);
    uv_check_init(&loop->uv, &loop->check);
    uv_idle_init(&loop->uv, &loop->again);
    uv_timer_init(&loop->uv, &loop->timer);
    loop->check.data = loop;
    loop->again.data = loop;
    loop->timer.data = loop;

    result = uv_poll_init(&loop->uv, &loop->backend_poll, backend_fd(backend));
    if (result == 0) {
        result = uv_poll_init(&loop->uv, &loop->signal_poll, signal_fd);
        if (result < 0) {
            uv_close((uv_handle_t *)&loop->backend_poll, NULL);
        }
    }
    if (result < 0) {
        uv_close((uv_handle_t *)&loop->check, NULL);
        uv_close((uv_handle_t *)&loop->again, NULL);
        uv_close((uv_handle_t *)&loop->timer, NULL);
        uv_run(&loop->uv, UV_RUN_NOWAIT);
        uv_loop_close(&loop->uv);
        return error_set(err, -result, "cannot poll: %s", uv_strerror(result));
    }
    loop->signal_poll.data = loop;
    uv_check_start(&loop->check, on_check);
    uv_poll_start(&loop->backend_poll, UV_READABLE, on_backend);
    uv_poll_start(&loop->signal_poll, UV_READABLE, on_signal);
    return 0;
}

void loop_run(struct loop *loop)
{
    uv_run(&loop->uv, UV_RUN_DEFAULT);
}

void loop_stop(struct loop *loop)
{
    uv_stop(&loop->uv);
}

void loop_close(struct loop *loop)
{
    int result;

    uv_close((uv_handle_t *)&loop->check, NULL);
    uv_close((uv_handle_t *)&loop->again, NULL);
    uv_close((uv_handle_t *)&loop->timer, NULL);
    uv_close((uv_handle_t *)&loop->backend_poll, NULL);
    uv_close((uv_handle_t *)&loop->signal_poll, NULL);
    uv_run(&loop->uv, UV_RUN_DEFAULT); // runs the callbacks of closing handles
    result = uv_loop_close(&loop->uv);
    assert(result == 0);
    (void)result;
}

void loop_want_tick(struct loop *loop)
{
    if (!uv_is_active((uv_handle_t *)&loop->timer)) {
        uv_timer_start(&loop->timer, on_timer, LOOP_TICK_MS, LOOP_TICK_MS);
    }
}
