// SPDX-License-Identifier: Apache-2.0
// test_runq.c: the run queue, the blocking helpers of file.h and error messages.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/runq.h"

// ---- Run queue ----------------------------------------------------------------------------------

#define NOTES_MAX 16

// The tasks that ran, in order.
static int notes[NOTES_MAX];
static size_t note_count;

static int start_notes(void **state)
{
    (void)state;
    note_count = 0;
    return 0;
}

struct noting {
    struct task task;
    struct runq *rq;
    int number;
    int again;             // how often it posts itself again
    struct noting *behind; // posted when this one runs
};

static void note(struct task *task)
{
    struct noting *noting = (struct noting *)((char *)task - offsetof(struct noting, task));

    assert_true(note_count < NOTES_MAX);
    notes[note_count++] = noting->number;
    assert_false(task->queued);
    if (noting->again > 0) {
        noting->again--;
        runq_post(noting->rq, task);
    }
    if (noting->behind)
        runq_post(noting->rq, &noting->behind->task);
}

static void assert_notes(const int *expected, size_t count)
{
    assert_int_equal(note_count, count);
    assert_memory_equal(notes, expected, count * sizeof(*expected));
}

static void an_empty_queue_runs_nothing(void **state)
{
    struct runq rq;

    (void)state;
    runq_init(&rq);
    assert_true(runq_empty(&rq));
    assert_false(runq_run(&rq));
    assert_int_equal(note_count, 0);
}

static void tasks_run_in_the_order_of_posting(void **state)
{
    struct runq rq;
    struct noting tasks[3];

    (void)state;
    runq_init(&rq);
    for (int i = 0; i < 3; i++) {
        tasks[i] = (struct noting){.task.run = note, .rq = &rq, .number = i};
        runq_post(&rq, &tasks[i].task);
    }
    assert_int_equal(note_count, 0); // posting runs nothing
    assert_int_equal(rq.count, 3);
    assert_false(runq_empty(&rq));
    assert_true(runq_run(&rq));
    assert_notes((const int[]){0, 1, 2}, 3);
    assert_true(runq_empty(&rq));
    assert_false(runq_run(&rq));
}

static void tasks_posted_while_running_wait_for_the_next_call(void **state)
{
    struct runq rq;
    struct noting behind = {.task.run = note, .rq = &rq, .number = 3};
    struct noting first = {.task.run = note, .rq = &rq, .number = 1, .again = 2, .behind = NULL};
    struct noting second = {.task.run = note, .rq = &rq, .number = 2, .behind = &behind};

    (void)state;
    runq_init(&rq);
    runq_post(&rq, &first.task);
    runq_post(&rq, &second.task);
    assert_true(runq_run(&rq));
    assert_notes((const int[]){1, 2}, 2);
    assert_int_equal(rq.count, 2);
    assert_true(runq_run(&rq));
    assert_notes((const int[]){1, 2, 1, 3}, 4);
    assert_true(runq_run(&rq));
    assert_notes((const int[]){1, 2, 1, 3, 1}, 5);
    assert_false(runq_run(&rq));
}

// Drains the queue from inside a task, as a blocking helper called there would.
struct nesting {
    struct task task;
    struct runq *rq;
};

static void drain(struct task *task)
{
    struct nesting *nesting = (struct nesting *)((char *)task - offsetof(struct nesting, task));

    while (runq_run(nesting->rq))
        ;
}

static void a_nested_run_leaves_the_outer_one_in_order(void **state)
{
    struct runq rq;
    struct nesting nesting = {.task.run = drain, .rq = &rq};
    struct noting one = {.task.run = note, .rq = &rq, .number = 1};
    struct noting two = {.task.run = note, .rq = &rq, .number = 2};

    (void)state;
    runq_init(&rq);
    runq_post(&rq, &nesting.task);
    runq_post(&rq, &one.task);
    runq_post(&rq, &two.task);
    assert_true(runq_run(&rq));
    assert_notes((const int[]){1, 2}, 2);
    assert_true(runq_empty(&rq));
}

// ---- A file in memory ---------------------------------------------------------------------------

#define MEMORY_SIZE 4096
#define WAITING_MAX 4

// Keeps requests and completes them in wait, at most one a call, newest first: the contract of
// file.h asks for no order.
struct memory_file {
    struct file file;
    uint8_t bytes[MEMORY_SIZE];
    struct file_io *waiting[WAITING_MAX];
    size_t waiting_count;
    unsigned waits;
    int fail;     // result of the next request, when not 0
    bool inside;  // submit is running
    bool at_once; // complete inside submit, which only queues done
    bool closed;
};

static struct memory_file *memory_of(struct file *file)
{
    return (struct memory_file *)((char *)file - offsetof(struct memory_file, file));
}

static int memory_execute(struct memory_file *memory, const struct file_io *io)
{
    uint64_t at = io->offset;

    if (memory->fail) {
        int fail = memory->fail;

        memory->fail = 0;
        return fail;
    }
    for (int i = 0; i < io->iovcnt; i++) {
        assert_true(at + io->iov[i].iov_len <= MEMORY_SIZE);
        if (io->kind == FILE_READ)
            memcpy(io->iov[i].iov_base, memory->bytes + at, io->iov[i].iov_len);
        else
            memcpy(memory->bytes + at, io->iov[i].iov_base, io->iov[i].iov_len);
        at += io->iov[i].iov_len;
    }
    if (io->kind == FILE_ZERO)
        memset(memory->bytes + io->offset, 0, io->length);
    return 0;
}

static void memory_submit(struct file *file, struct file_io *io)
{
    struct memory_file *memory = memory_of(file);

    memory->inside = true;
    if (memory->at_once) {
        file_io_complete(io, memory_execute(memory, io));
    } else {
        assert_true(memory->waiting_count < WAITING_MAX);
        memory->waiting[memory->waiting_count++] = io;
    }
    memory->inside = false;
}

static void memory_wait(struct file *file)
{
    struct memory_file *memory = memory_of(file);

    assert_true(memory->waiting_count > 0);
    struct file_io *io = memory->waiting[--memory->waiting_count];

    memory->waits++;
    file_io_complete(io, memory_execute(memory, io));
}

static int64_t memory_size(struct file *file)
{
    return memory_of(file)->closed ? -EBADF : MEMORY_SIZE;
}

static void memory_close(struct file *file)
{
    memory_of(file)->closed = true;
}

static const struct file_ops memory_ops = {
    .submit = memory_submit, .wait = memory_wait, .size = memory_size, .close = memory_close};

static void memory_init(struct memory_file *memory, struct runq *rq)
{
    runq_init(rq);
    memset(memory, 0, sizeof(*memory));
    memory->file = (struct file){.ops = &memory_ops, .runq = rq};
    for (size_t i = 0; i < MEMORY_SIZE; i++)
        memory->bytes[i] = (uint8_t)(i * 7);
}

// ---- Submitting and blocking helpers ------------------------------------------------------------

struct counted_io {
    struct file_io io;
    struct memory_file *memory;
    unsigned calls;
};

static void count_done(struct file_io *io)
{
    struct counted_io *counted =
        (struct counted_io *)((char *)io - offsetof(struct counted_io, io));

    assert_false(counted->memory->inside);
    counted->calls++;
}

static void done_runs_from_the_queue_and_never_inside_submit(void **state)
{
    struct runq rq;
    struct memory_file memory;
    uint8_t byte = 0;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct counted_io counted = {.memory = &memory};

    (void)state;
    memory_init(&memory, &rq);
    memory.at_once = true;
    counted.io = (struct file_io){.kind = FILE_READ,
                                  .offset = 3,
                                  .length = 1,
                                  .iov = &iov,
                                  .iovcnt = 1,
                                  .done = count_done,
                                  .progress = 99};
    file_submit(&memory.file, &counted.io);
    assert_int_equal(counted.calls, 0);
    assert_ptr_equal(counted.io.file, &memory.file);
    assert_int_equal(counted.io.progress, 0);
    assert_true(runq_run(&rq));
    assert_int_equal(counted.calls, 1);
    assert_int_equal(counted.io.result, 0);
    assert_int_equal(byte, 21);

    // The same request may be submitted again from where done has run.
    counted.io.offset = 4;
    file_submit(&memory.file, &counted.io);
    assert_true(runq_run(&rq));
    assert_int_equal(counted.calls, 2);
    assert_int_equal(byte, 28);
}

static void blocking_read_and_write_move_the_bytes(void **state)
{
    struct runq rq;
    struct memory_file memory;
    uint8_t buffer[16];

    (void)state;
    memory_init(&memory, &rq);
    assert_int_equal(file_read_blocking(&memory.file, buffer, 100, sizeof(buffer)), 0);
    assert_memory_equal(buffer, memory.bytes + 100, sizeof(buffer));
    assert_int_equal(memory.waits, 1);

    memset(buffer, 0xa5, sizeof(buffer));
    assert_int_equal(file_write_blocking(&memory.file, buffer, MEMORY_SIZE - 16, 16), 0);
    assert_memory_equal(memory.bytes + MEMORY_SIZE - 16, buffer, 16);
    assert_int_equal(memory.bytes[MEMORY_SIZE - 17], (uint8_t)((MEMORY_SIZE - 17) * 7));
    assert_int_equal(memory.waits, 2);
    assert_true(runq_empty(&rq));
}

static void blocking_do_passes_kind_and_range_on(void **state)
{
    static const uint8_t zeros[64];
    struct runq rq;
    struct memory_file memory;

    (void)state;
    memory_init(&memory, &rq);
    assert_int_equal(file_do_blocking(&memory.file, FILE_ZERO, 64, 64), 0);
    assert_memory_equal(memory.bytes + 64, zeros, 64);
    assert_int_equal(memory.bytes[63], (uint8_t)(63 * 7));
    assert_int_equal(memory.bytes[128], (uint8_t)(128 * 7));
    assert_int_equal(file_do_blocking(&memory.file, FILE_DATASYNC, 0, 0), 0);
    assert_int_equal(memory.waits, 2);
}

static void blocking_helpers_return_the_error_of_the_request(void **state)
{
    struct runq rq;
    struct memory_file memory;
    uint8_t byte = 1;

    (void)state;
    memory_init(&memory, &rq);
    memory.fail = -EIO;
    assert_int_equal(file_read_blocking(&memory.file, &byte, 0, 1), -EIO);
    assert_int_equal(byte, 1);
    memory.fail = -ENOSPC;
    assert_int_equal(file_write_blocking(&memory.file, &byte, 0, 1), -ENOSPC);
    memory.fail = -EOPNOTSUPP;
    assert_int_equal(file_do_blocking(&memory.file, FILE_PUNCH, 0, 1), -EOPNOTSUPP);
    assert_int_equal(file_do_blocking(&memory.file, FILE_DATASYNC, 0, 0), 0);
}

static void blocking_helpers_run_what_others_have_queued(void **state)
{
    struct runq rq;
    struct memory_file memory;
    struct counted_io counted = {.memory = &memory};
    uint8_t byte;

    (void)state;
    memory_init(&memory, &rq);
    counted.io = (struct file_io){.kind = FILE_DATASYNC, .done = count_done};
    file_submit(&memory.file, &counted.io);
    struct noting noting = {.task.run = note, .rq = &rq, .number = 7};
    runq_post(&rq, &noting.task);

    // The newest request completes first, so the read does not wait for the sync before it.
    assert_int_equal(file_read_blocking(&memory.file, &byte, 1, 1), 0);
    assert_notes((const int[]){7}, 1);
    assert_int_equal(counted.calls, 0);
    assert_int_equal(memory.waits, 1);

    assert_int_equal(file_read_blocking(&memory.file, &byte, 1, 1), 0);
    assert_int_equal(file_do_blocking(&memory.file, FILE_DATASYNC, 0, 0), 0);
    assert_int_equal(counted.calls, 0);
    memory_wait(&memory.file);
    assert_true(runq_run(&rq));
    assert_int_equal(counted.calls, 1);
}

static void size_and_close_reach_the_implementation(void **state)
{
    struct runq rq;
    struct memory_file memory;

    (void)state;
    memory_init(&memory, &rq);
    assert_int_equal(file_size(&memory.file), MEMORY_SIZE);
    file_close(&memory.file);
    assert_true(memory.closed);
    assert_int_equal(file_size(&memory.file), -EBADF);
}

// ---- Error messages -----------------------------------------------------------------------------

static void error_set_formats_and_negates(void **state)
{
    struct error err;

    (void)state;
    assert_int_equal(error_set(&err, ENOENT, "%s: no %s", "a.qcow2", "file"), -ENOENT);
    assert_string_equal(err.text, "a.qcow2: no file");
    error_prefix(&err, "backing file %d", 2);
    assert_string_equal(err.text, "backing file 2: a.qcow2: no file");
}

static void error_messages_are_cut_not_overrun(void **state)
{
    struct {
        struct error err;
        char guard[8];
    } guarded;
    char text[2 * ERROR_TEXT_MAX];

    (void)state;
    memset(guarded.guard, 'g', sizeof(guarded.guard));
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    assert_int_equal(error_set(&guarded.err, EIO, "%s", text), -EIO);
    assert_int_equal(strlen(guarded.err.text), ERROR_TEXT_MAX - 1);
    error_prefix(&guarded.err, "name");
    assert_int_equal(strlen(guarded.err.text), ERROR_TEXT_MAX - 1);
    assert_memory_equal(guarded.err.text, "name: xxx", 9);
    error_prefix(&guarded.err, "%s", text); // leaves no room for the message
    assert_int_equal(strlen(guarded.err.text), ERROR_TEXT_MAX - 1);
    assert_memory_equal(guarded.guard, "gggggggg", sizeof(guarded.guard));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(an_empty_queue_runs_nothing, start_notes),
        cmocka_unit_test_setup(tasks_run_in_the_order_of_posting, start_notes),
        cmocka_unit_test_setup(tasks_posted_while_running_wait_for_the_next_call, start_notes),
        cmocka_unit_test_setup(a_nested_run_leaves_the_outer_one_in_order, start_notes),
        cmocka_unit_test(done_runs_from_the_queue_and_never_inside_submit),
        cmocka_unit_test(blocking_read_and_write_move_the_bytes),
        cmocka_unit_test(blocking_do_passes_kind_and_range_on),
        cmocka_unit_test(blocking_helpers_return_the_error_of_the_request),
        cmocka_unit_test_setup(blocking_helpers_run_what_others_have_queued, start_notes),
        cmocka_unit_test(size_and_close_reach_the_implementation),
        cmocka_unit_test(error_set_formats_and_negates),
        cmocka_unit_test(error_messages_are_cut_not_overrun),
    };

    return cmocka_run_group_tests_name("runq, file, error", tests, NULL, NULL);
}
