// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/file_sim.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/memcheck.h"
#include "tests/sim/heap.h"
#include "tests/sim/pattern.h"

// Longest time of a job: as long as a few I/Os.
#define JOB_LONGEST 400u

struct sim_request {
    TAILQ_ENTRY(sim_request) link;
    struct sim *sim;
    struct sim_disk *disk;
    struct file_io *io;
    // A job of sim_offload; then only due is used besides.
    struct offload_job *job;
    struct sim_entry *entry; // NULL: changes nothing
    struct task task;
    uint64_t due;
    uint64_t number;
    uint64_t covers; // FILE_DATASYNC: requests reported so far
    int result;
};

struct file_sim {
    struct file file;
    struct sim *sim;
    struct sim_disk *disk;
};

static void *need(void *p)
{
    if (!p)
        abort();
    return p;
}

// ---- The machine

void sim_init(struct sim *sim, struct rng rng)
{
    *sim = (struct sim){.rng = rng};
    runq_init(&sim->runq);
    TAILQ_INIT(&sim->pending);
}

void sim_power_on(struct sim *sim)
{
    assert(sim_quiet(sim) && runq_empty(&sim->runq));
    sim->events = 0;
    sim->cut_at = 0;
    sim->cut_barrier = 0;
    sim->barriers = 0;
    sim->dead = false;
    sim->fault_count = 0;
    sim->faults_hit = 0;
    sim->growth_refused = 0;
    memset(sim->class_count, 0, sizeof(sim->class_count));
}

void sim_fail(struct sim *sim, const char *format, ...)
{
    va_list args;

    if (sim->failure[0] != '\0')
        return;
    va_start(args, format);
    vsnprintf(sim->failure, sizeof(sim->failure), format, args);
    va_end(args);
    sim_trace(sim, "FAILED: %s", sim->failure);
}

void sim_trace(const struct sim *sim, const char *format, ...)
{
    va_list args;

    if (!sim->trace)
        return;
    printf("%8llu ", (unsigned long long)sim->now);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

bool sim_run(struct sim *sim)
{
    uint64_t failed = heap_failed();

    heap_enter(true);
    bool ran = runq_run(&sim->runq);
    heap_enter(false);
    sim_count_heap(sim, failed);
    return ran;
}

void sim_count_heap(struct sim *sim, uint64_t failed)
{
    if (heap_failed() == failed)
        return;
    sim->faults_hit += heap_failed() - failed;
    sim_trace(sim, "  memory ran out");
}

bool sim_quiet(const struct sim *sim)
{
    return TAILQ_EMPTY(&sim->pending);
}

uint64_t sim_next_due(const struct sim *sim)
{
    const struct sim_request *first = TAILQ_FIRST(&sim->pending);

    return first ? first->due : UINT64_MAX;
}

static uint64_t delay(struct sim *sim, enum file_io_kind kind)
{
    uint64_t spread = rng_between(&sim->rng, 1, 100);

    switch (sim->delays) {
    case SIM_DELAYS_EVEN:
        return 50;
    case SIM_DELAYS_TAIL:
        return rng_percent(&sim->rng, 5) ? 50 * spread : 1 + spread / 10;
    case SIM_DELAYS_SLOW_BARRIER:
        return kind == FILE_DATASYNC ? 500 + spread : spread;
    case SIM_DELAYS_SLOW_WRITE:
        return kind == FILE_WRITE && rng_percent(&sim->rng, 15) ? 20 * spread : spread;
    default:
        return spread;
    }
}

static void insert_pending(struct sim *sim, struct sim_request *request)
{
    struct sim_request *before;

    TAILQ_FOREACH_REVERSE(before, &sim->pending, sim_request_list, link)
    {
        if (before->due <= request->due) {
            TAILQ_INSERT_AFTER(&sim->pending, before, request, link);
            return;
        }
    }
    TAILQ_INSERT_HEAD(&sim->pending, request, link);
}

// ---- Requests

void sim_power_off(struct sim *sim)
{
    struct sim_request *request;

    if (sim->dead)
        return;
    sim->dead = true;
    sim_trace(sim, "power off at event %llu", (unsigned long long)sim->events);
    TAILQ_FOREACH (request, &sim->pending, link) {
        if (!request->entry)
            continue;
        disk_in_flight(request->disk, request->entry, &sim->rng);
        request->entry = NULL;
    }
}

// Counts one more event. Returns false when the power goes before it.
static bool event(struct sim *sim)
{
    sim->events++;
    if (sim->events == sim->cut_at)
        sim_power_off(sim);
    return !sim->dead;
}

static void gather(const struct file_io *io, unsigned char *to)
{
    for (int i = 0; i < io->iovcnt; i++) {
        memcheck_leave(io->iov[i].iov_base, io->iov[i].iov_len);
        memcpy(to, io->iov[i].iov_base, io->iov[i].iov_len);
        to += io->iov[i].iov_len;
    }
}

static void fill_read(const struct sim_disk *disk, const struct file_io *io)
{
    uint64_t at = io->offset;

    for (int i = 0; i < io->iovcnt; i++) {
        memory_read(&disk->live, io->iov[i].iov_base, at, io->iov[i].iov_len);
        at += io->iov[i].iov_len;
    }
}

// Fills the buffer of a read with bytes that no one may look at before the read ends.
static void scribble(const struct file_io *io)
{
    for (int i = 0; i < io->iovcnt; i++) {
        memset(io->iov[i].iov_base, 0xa5, io->iov[i].iov_len);
        memcheck_forget(io->iov[i].iov_base, io->iov[i].iov_len);
    }
}

static void check_unchanged(struct sim *sim, const struct sim_request *request)
{
    const struct sim_entry *entry = request->entry;
    const unsigned char *at = entry->bytes;

    for (int i = 0; i < request->io->iovcnt; i++) {
        const struct iovec *iov = &request->io->iov[i];

        if (memcmp(at, iov->iov_base, iov->iov_len) != 0)
            sim_fail(sim, "the buffer of a write to %llu changed while it was in flight",
                     (unsigned long long)entry->offset);
        at += iov->iov_len;
    }
}

static void report(struct task *task)
{
    struct sim_request *request =
        (struct sim_request *)((char *)task - offsetof(struct sim_request, task));
    struct file_io *io = request->io;

    if (request->entry && !request->sim->dead)
        request->entry->reported_at = ++request->disk->reported;
    io->result = request->result;
    free(request);
    // The task that file_submit set up calls done.
    io->task.run(&io->task);
}

static void post_report(struct sim *sim, struct sim_request *request)
{
    request->task = (struct task){.run = report};
    runq_post(&sim->runq, &request->task);
}

// A file may also copy: in the same read, some parts are on loan and some are not.
#define LOAN_PERCENT 70

static void loan_take_from(struct sim_disk *disk, struct file_io *io)
{
    struct sim_loan *loan = need(malloc(sizeof(*loan) + io->length));

    *loan = (struct sim_loan){.offset = io->offset, .length = io->length};
    memory_read(&disk->live, loan->bytes, loan->offset, loan->length);
    LIST_INSERT_HEAD(&disk->loans, loan, link);
    io->loan = loan->bytes;
}

// Words of a loan that may lose the stamp of their place although the owner stays: a write may
// begin and end in the middle of a word, and earlier writes may have done so.
#define LOAN_STRANGERS_MAX 8

// Returns true when more than LOAN_STRANGERS_MAX words had the stamp of a place before and now have
// that of another place, or none.
static bool has_another_owner(const unsigned char *before, const unsigned char *after,
                              uint64_t length)
{
    unsigned strangers = 0;
    uint64_t was, is;

    for (uint64_t at = 0; at + PATTERN_WORD <= length; at += PATTERN_WORD) {
        if (!pattern_place(before + at, &was) || pattern_is_zeros(after + at))
            continue;
        strangers += !pattern_place(after + at, &is) || is / SIM_SECTOR != was / SIM_SECTOR;
    }
    return strangers > LOAN_STRANGERS_MAX;
}

// The disk has changed, and memory on loan shows the change. A guest may overwrite bytes that
// another one is about to be sent, but a cluster on loan goes neither to the host nor to a new
// owner.
static void refresh_loans(struct sim *sim, struct sim_disk *disk, const struct sim_entry *entry)
{
    struct sim_loan *loan;

    LIST_FOREACH (loan, &disk->loans, link) {
        if (entry->kind != FILE_TRUNCATE && (entry->offset >= loan->offset + loan->length ||
                                             entry->offset + entry->length <= loan->offset))
            continue;
        unsigned char *before = need(malloc(loan->length));

        memcpy(before, loan->bytes, loan->length);
        memory_read(&disk->live, loan->bytes, loan->offset, loan->length);
        if (entry->kind == FILE_PUNCH || has_another_owner(before, loan->bytes, loan->length))
            sim_fail(sim, "a %s at host offset %llu, of which %llu bytes at %llu are on loan",
                     disk_kind_names[entry->kind], (unsigned long long)entry->offset,
                     (unsigned long long)loan->length, (unsigned long long)loan->offset);
        free(before);
    }
}

// Fills in some of the extents from the offset on, at least one.
static void fill_extents(struct sim *sim, const struct sim_disk *disk, struct file_io *io)
{
    uint64_t at = io->offset;
    size_t max = rng_percent(&sim->rng, 50) ? io->extent_max : rng_between(&sim->rng, 1, 3);

    io->extent_count = 0;
    while (io->extent_count < max && at < INT64_MAX) {
        struct file_extent *extent = &io->extents[io->extent_count++];

        *extent = (struct file_extent){.length = INT64_MAX - at, .kind = FILE_EXTENT_HOLE};
        if (at < disk->live.size)
            extent->kind =
                memory_hole(&disk->live, at, &extent->length) ? FILE_EXTENT_HOLE : FILE_EXTENT_DATA;
        if (extent->length < io->hole_min)
            extent->kind = FILE_EXTENT_DATA;
        at += extent->length;
    }
}

static void complete(struct sim *sim, struct sim_request *request)
{
    struct sim_disk *disk = request->disk;
    struct file_io *io = request->io;

    sim_trace(sim, "  io %llu ends: %s%s", (unsigned long long)request->number,
              disk_kind_names[io->kind],
              request->result == 0         ? ""
              : request->result == -ENOSPC ? " ENOSPC"
              : request->result == -EIO    ? " EIO"
                                           : " EOPNOTSUPP");
    if (io->kind == FILE_READ && request->result == 0 && io->loan_wanted && disk->loans_made &&
        rng_percent(&sim->rng, LOAN_PERCENT))
        loan_take_from(disk, io);
    else if (io->kind == FILE_READ && request->result == 0)
        fill_read(disk, io);
    else if (io->kind == FILE_EXTENTS && request->result == 0 && io->extent_count == 0)
        fill_extents(sim, disk, io);
    else if (io->kind == FILE_DATASYNC)
        disk_barrier(disk, request->covers, request->result == 0);
    if (request->entry) {
        if (io->kind == FILE_WRITE)
            check_unchanged(sim, request);
        disk_apply(disk, request->entry);
        refresh_loans(sim, disk, request->entry);
    }
}

bool sim_complete_next(struct sim *sim)
{
    struct sim_request *request = TAILQ_FIRST(&sim->pending);

    if (!request)
        return false;
    if (request->due > sim->now)
        sim->now = request->due;
    if (request->job) {
        TAILQ_REMOVE(&sim->pending, request, link);
        sim_trace(sim, "  job ends");
        request->job->work(request->job);
        runq_post(&sim->runq, &request->job->task);
        free(request);
        return true;
    }
    if (request->io->kind == FILE_DATASYNC && ++sim->barriers == sim->cut_barrier)
        sim_power_off(sim);
    bool alive = event(sim);
    TAILQ_REMOVE(&sim->pending, request, link);
    if (alive)
        complete(sim, request);
    else
        request->result = -EIO;
    post_report(sim, request);
    return true;
}

void sim_offload(struct sim *sim, struct offload_job *job)
{
    bool inside = heap_enter(false);
    struct sim_request *request = need(calloc(1, sizeof(*request)));

    request->sim = sim;
    request->job = job;
    request->due = sim->now + rng_scaled(&sim->rng, JOB_LONGEST);
    insert_pending(sim, request);
    heap_enter(inside);
}

static int class_fault(struct sim *sim, enum sim_class class)
{
    uint64_t number = sim->class_count[class]++;

    for (unsigned i = 0; i < sim->fault_count; i++) {
        const struct sim_fault *fault = &sim->faults[i];

        if (fault->class == class && number >= fault->first && number - fault->first < fault->count)
            return fault->error;
    }
    return 0;
}

static int decide(struct sim *sim, const struct sim_disk *disk, const struct file_io *io)
{
    bool grows = (io->kind == FILE_WRITE || io->kind == FILE_ZERO || io->kind == FILE_ALLOCATE) &&
                 io->offset + io->length > disk->live.size;
    int error = 0;

    if (disk->unsupported >> io->kind & 1 || (disk->device && io->kind == FILE_ALLOCATE) ||
        (disk->no_extents && io->kind == FILE_EXTENTS))
        return -EOPNOTSUPP;
    if (grows)
        error = class_fault(sim, SIM_GROW);
    if (error == 0 && (io->kind == FILE_READ || io->kind == FILE_EXTENTS))
        error = class_fault(sim, SIM_READ);
    else if (error == 0 && io->kind == FILE_DATASYNC)
        error = class_fault(sim, SIM_BARRIER);
    else if (error == 0)
        error = class_fault(sim, SIM_WRITE);
    if (error == 0 && grows && (disk->device || io->offset + io->length > disk->limit))
        error = -ENOSPC;
    if (error == 0 && disk->device && io->kind == FILE_TRUNCATE && io->offset > disk->live.size)
        error = -ENOSPC;
    if (error == 0 && grows && io->offset + io->length > MEMORY_BYTES_MAX) {
        sim_fail(sim, "the file grows to %llu bytes",
                 (unsigned long long)(io->offset + io->length));
        error = -ENOSPC;
    }
    if (error < 0)
        sim->faults_hit++;
    if (error == -ENOSPC && grows)
        sim->growth_refused++;
    return error;
}

static struct sim_entry *new_entry(struct sim *sim, const struct sim_request *request)
{
    const struct file_io *io = request->io;
    struct sim_entry *entry = need(calloc(1, sizeof(*entry)));

    entry->kind = io->kind;
    entry->offset = io->offset;
    entry->length = io->length;
    if (io->kind == FILE_WRITE) {
        entry->bytes = need(malloc(io->length + 1));
        gather(io, entry->bytes);
    }
    if (request->result < 0)
        entry->partial_seed = rng_next(&sim->rng) | 1;
    snprintf(entry->label, sizeof(entry->label), "io %llu %s", (unsigned long long)request->number,
             disk_kind_names[io->kind]);
    return entry;
}

static void submit(struct file *file, struct file_io *io)
{
    struct file_sim *f = (struct file_sim *)file;
    struct sim *sim = f->sim;
    bool inside = heap_enter(false);
    struct sim_request *request = need(calloc(1, sizeof(*request)));

    bool alive = event(sim);
    request->sim = sim;
    request->disk = f->disk;
    request->io = io;
    request->number = sim->events;
    request->covers = f->disk->reported;
    request->due = sim->now + delay(sim, io->kind);
    request->result = alive ? decide(sim, f->disk, io) : -EIO;
    sim_trace(sim, "  io %llu: %s %s %llu+%llu", (unsigned long long)request->number, file->name,
              disk_kind_names[io->kind], (unsigned long long)io->offset,
              (unsigned long long)io->length);
    if (io->kind == FILE_READ)
        scribble(io);
    // The host may look at the extents at any time until it answers.
    if (io->kind == FILE_EXTENTS && request->result == 0 && rng_percent(&sim->rng, 50))
        fill_extents(sim, f->disk, io);
    if (alive && request->result != -EOPNOTSUPP && io->kind != FILE_READ &&
        io->kind != FILE_DATASYNC && io->kind != FILE_EXTENTS &&
        (io->kind == FILE_WRITE || request->result == 0) &&
        !(f->disk->device &&
          (io->kind == FILE_TRUNCATE || io->offset + io->length > f->disk->live.size)))
        request->entry = new_entry(sim, request);
    insert_pending(sim, request);
    heap_enter(inside);
}

// ---- The file

static void wait_for_request(struct file *file)
{
    struct sim *sim = ((struct file_sim *)file)->sim;

    if (sim_complete_next(sim))
        return;
    sim_fail(sim, "'%s' is waited for while nothing is in flight", file->name);
    abort();
}

static int64_t size(struct file *file)
{
    return (int64_t)((struct file_sim *)file)->disk->live.size;
}

static void loan_return(struct file *file, const void *bytes, uint64_t length)
{
    struct file_sim *f = (struct file_sim *)file;
    struct sim_loan *loan;

    LIST_FOREACH (loan, &f->disk->loans, link) {
        if (loan->bytes != bytes)
            continue;
        if (loan->length != length)
            sim_fail(f->sim, "of a loan of %llu bytes %llu are returned",
                     (unsigned long long)loan->length, (unsigned long long)length);
        LIST_REMOVE(loan, link);
        free(loan);
        return;
    }
    sim_fail(f->sim, "something is returned that is not on loan");
}

static bool loan_copy(struct file *file, void *to, const void *bytes, size_t length)
{
    (void)file;
    memcpy(to, bytes, length);
    return true;
}

static void file_sim_close(struct file *file)
{
    struct file_sim *f = (struct file_sim *)file;

    if (!LIST_EMPTY(&f->disk->loans))
        sim_fail(f->sim, "'%s' is closed while something of it is on loan", file->name);
    free(file->name);
    free(file);
}

static const struct file_ops ops = {.submit = submit,
                                    .wait = wait_for_request,
                                    .size = size,
                                    .loan_return = loan_return,
                                    .loan_copy = loan_copy,
                                    .close = file_sim_close};
struct file *file_sim_open(struct sim *sim, struct sim_disk *disk, const char *name, bool read_only)
{
    struct file_sim *f = need(calloc(1, sizeof(*f)));

    f->file = (struct file){.ops = &ops,
                            .runq = &sim->runq,
                            .name = need(strdup(name)),
                            .read_only = read_only,
                            .fresh_is_zero = !disk->device};
    f->sim = sim;
    f->disk = disk;
    return &f->file;
}
