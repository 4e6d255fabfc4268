// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/scripted_file.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "tests/memcheck.h"

#define PAGE_BYTES 4096u

static struct scripted_file *scripted_file_of(struct file *file)
{
    return (struct scripted_file *)((char *)file - offsetof(struct scripted_file, file));
}

static void submit(struct file *file, struct file_io *io)
{
    struct scripted_file *s = scripted_file_of(file);

    assert_true(s->queued < SCRIPTED_QUEUE_MAX);
    for (int i = 0; i < io->iovcnt; i++) {
        if (io->kind == FILE_READ)
            memcheck_forget(io->iov[i].iov_base, io->iov[i].iov_len);
        else
            memcheck_leave(io->iov[i].iov_base, io->iov[i].iov_len);
    }
    s->submitted[io->kind]++;
    s->queue[s->queued++] = io;
    if (s->observe)
        s->observe(s->observe_context, io, false);
}

static void wait_for_one(struct file *file)
{
    scripted_file_end(scripted_file_of(file), 0, 0);
}

static int64_t size_of(struct file *file)
{
    const struct scripted_file *s = scripted_file_of(file);

    return s->size_error < 0 ? s->size_error : (int64_t)s->size;
}

// The test owns the file.
static void leave_open(struct file *file)
{
    (void)file;
}

static void return_loan(struct file *file, const void *bytes, uint64_t length)
{
    (void)bytes;
    (void)length;
    assert_true(scripted_file_of(file)->loans > 0);
    scripted_file_of(file)->loans--;
}

static bool copy_loan(struct file *file, void *to, const void *bytes, size_t length)
{
    (void)file;
    memcpy(to, bytes, length);
    return true;
}

static const struct file_ops scripted_ops = {.submit = submit,
                                             .wait = wait_for_one,
                                             .size = size_of,
                                             .loan_return = return_loan,
                                             .loan_copy = copy_loan,
                                             .close = leave_open};

struct scripted_file *scripted_file_new(void)
{
    static char name[] = "scripted";
    struct scripted_file *s = calloc(1, sizeof(*s));

    assert_non_null(s);
    s->bytes = mmap(NULL, SCRIPTED_BYTES_MAX, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(s->bytes != MAP_FAILED);
    runq_init(&s->runq);
    s->file =
        (struct file){.ops = &scripted_ops, .runq = &s->runq, .name = name, .fresh_is_zero = true};
    return s;
}

struct scripted_file *scripted_file_new_behind(struct scripted_file *s)
{
    static char name[] = "behind";

    s->behind = scripted_file_new();
    s->behind->file.runq = s->file.runq;
    s->behind->file.name = name;
    return s->behind;
}

void scripted_file_free(struct scripted_file *s)
{
    if (s->behind)
        scripted_file_free(s->behind);
    for (size_t i = 0; i < s->line_count; i++)
        free(s->lines[i]);
    munmap(s->bytes, SCRIPTED_BYTES_MAX);
    free(s);
}

// ---- Requests -----------------------------------------------------------------------------------

// Whole pages are given back, so that a large range costs no time.
static void clear(struct scripted_file *s, uint64_t begin, uint64_t end)
{
    uint64_t first = (begin + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    uint64_t last = end / PAGE_BYTES * PAGE_BYTES;

    if (begin >= end)
        return;
    if (first >= last) {
        memset(s->bytes + begin, 0, end - begin);
        return;
    }
    memset(s->bytes + begin, 0, first - begin);
    madvise(s->bytes + first, last - first, MADV_DONTNEED);
    memset(s->bytes + last, 0, end - last);
}

static void resize(struct scripted_file *s, uint64_t size)
{
    if (size < s->size)
        clear(s, size, s->size);
    s->size = size;
}

static void copy(struct scripted_file *s, const struct file_io *io)
{
    uint64_t pos = io->offset;

    for (int i = 0; i < io->iovcnt; pos += io->iov[i++].iov_len) {
        if (io->kind == FILE_READ)
            memcpy(io->iov[i].iov_base, s->bytes + pos, io->iov[i].iov_len);
        else
            memcpy(s->bytes + pos, io->iov[i].iov_base, io->iov[i].iov_len);
    }
    assert_int_equal(pos, io->offset + io->length);
}

static bool is_zero_page(const struct scripted_file *s, uint64_t at)
{
    static const uint8_t zeros[PAGE_BYTES];

    return memcmp(s->bytes + at / PAGE_BYTES * PAGE_BYTES, zeros, PAGE_BYTES) == 0;
}

// Pages of zeros are holes.
static void tell_extents(struct scripted_file *s, struct file_io *io)
{
    uint64_t at = io->offset;

    while (io->extent_count < io->extent_max && at < INT64_MAX) {
        struct file_extent *extent = &io->extents[io->extent_count++];
        bool hole = at >= s->size || is_zero_page(s, at);
        uint64_t end = hole ? INT64_MAX : s->size;

        for (uint64_t page = at / PAGE_BYTES * PAGE_BYTES; page < s->size; page += PAGE_BYTES) {
            if (page >= at && is_zero_page(s, page) != hole) {
                end = page;
                break;
            }
        }
        *extent = (struct file_extent){end - at, hole ? FILE_EXTENT_HOLE : FILE_EXTENT_DATA};
        at = end;
    }
}

static void carry_out(struct scripted_file *s, struct file_io *io)
{
    uint64_t end = io->offset + io->length;

    assert_true(io->offset <= SCRIPTED_BYTES_MAX && io->length <= SCRIPTED_BYTES_MAX - io->offset);
    switch (io->kind) {
    case FILE_READ:
        if (!io->loan_wanted || !s->makes_loans) {
            copy(s, io);
            return;
        }
        io->loan = s->bytes + io->offset;
        s->loans++;
        return;
    case FILE_WRITE:
        copy(s, io);
        break;
    case FILE_DATASYNC:
        return;
    case FILE_ZERO:
        clear(s, io->offset, end);
        break;
    case FILE_PUNCH:
        clear(s, io->offset, end < s->size ? end : s->size);
        return;
    case FILE_ALLOCATE:
        break;
    case FILE_TRUNCATE:
        resize(s, io->offset);
        return;
    case FILE_EXTENTS:
        tell_extents(s, io);
        return;
    }
    if (end > s->size)
        s->size = end;
}

static bool fails(const struct scripted_file *s, const struct file_io *io)
{
    return s->fail_length > 0 && io->kind == s->fail_kind &&
           (io->kind == FILE_DATASYNC || (io->offset < s->fail_offset + s->fail_length &&
                                          s->fail_offset < io->offset + io->length));
}

void scripted_file_end(struct scripted_file *s, size_t index, int result)
{
    assert_true(index < s->queued);
    struct file_io *io = s->queue[index];

    memmove(&s->queue[index], &s->queue[index + 1], (--s->queued - index) * sizeof(s->queue[0]));
    if (result == 0 && fails(s, io))
        result = s->fail_error;
    if (result == 0)
        carry_out(s, io);
    if (s->observe)
        s->observe(s->observe_context, io, true);
    file_io_complete(io, result);
}

bool scripted_file_turn(struct scripted_file *s)
{
    return runq_run(s->file.runq);
}

size_t scripted_file_turns(struct scripted_file *s)
{
    size_t turns = 0;

    while (scripted_file_turn(s))
        turns++;
    return turns;
}

// Ends the oldest request of the file or of its backing file. Returns false when there is none.
static bool end_one(struct scripted_file *s)
{
    for (; s; s = s->behind) {
        if (s->queued > 0) {
            scripted_file_end(s, 0, 0);
            return true;
        }
    }
    return false;
}

void scripted_file_run(struct scripted_file *s)
{
    while (scripted_file_turn(s) || end_one(s))
        ;
}

size_t scripted_file_find(const struct scripted_file *s, enum file_io_kind kind)
{
    size_t i = 0;

    while (i < s->queued && s->queue[i]->kind != kind)
        i++;
    return i;
}

// ---- Images -------------------------------------------------------------------------------------

static void keep_line(void *context, const char *line)
{
    struct scripted_file *s = context;

    if (s->line_count < SCRIPTED_LINES_MAX)
        s->lines[s->line_count++] = strdup(line);
}

static int open_behind(void *context, const char *path, struct file **out, struct error *err)
{
    struct scripted_file *s = context;

    if (!s->behind)
        return error_set(err, ENOENT, "'%s': there is no such file", path);
    *out = &s->behind->file;
    return 0;
}

static void note_settle(void *context)
{
    ((struct scripted_file *)context)->settles++;
}

void scripted_file_create(struct scripted_file *s, const struct create_options *create)
{
    struct error err;

    assert_int_equal(create_image(&s->file, create, &err), 0);
}

struct image *scripted_image_open_only(struct scripted_file *s, const struct image_options *options)
{
    struct image_host host = {
        .context = s, .open_backing = open_behind, .log = keep_line, .settle = note_settle};
    struct image *image;
    struct error err;

    if (image_open(&image, &s->file, options, &host, &err) < 0)
        fail_msg("%s", err.text);
    return image;
}

struct image *scripted_image_open(struct scripted_file *s, const struct image_options *options)
{
    struct image *image = scripted_image_open_only(s, options);

    scripted_file_run(s);
    return image;
}

struct image *scripted_image_new(struct scripted_file *s, const struct create_options *create,
                                 const struct image_options *options)
{
    scripted_file_create(s, create);
    return scripted_image_open(s, options);
}

struct waiting_op {
    struct op op;
    bool done;
};

static void note_done(struct op *op)
{
    ((struct waiting_op *)((char *)op - offsetof(struct waiting_op, op)))->done = true;
}

int scripted_op(struct scripted_file *s, struct image *image, struct op *op)
{
    struct waiting_op waiting = {.op = *op};

    waiting.op.done = note_done;
    op_start(image, &waiting.op);
    scripted_file_run(s);
    assert_true(waiting.done);
    op->extent_count = waiting.op.extent_count;
    return waiting.op.result;
}

int scripted_read(struct scripted_file *s, struct image *image, void *buf, uint64_t offset,
                  uint64_t length)
{
    struct op read = {.kind = OP_READ, .offset = offset, .length = length, .buf = buf};

    memcheck_forget(buf, length);
    int result = scripted_op(s, image, &read);
    if (result == 0)
        memcheck_leave(buf, length);
    return result;
}

int scripted_write(struct scripted_file *s, struct image *image, const void *buf, uint64_t offset,
                   uint64_t length)
{
    return scripted_op(
        s, image,
        &(struct op){
            .kind = OP_WRITE, .offset = offset, .length = length, .buf = (void *)(uintptr_t)buf});
}
