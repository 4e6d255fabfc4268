// SPDX-License-Identifier: Apache-2.0
#include "qcow2/durable/writeback.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/container.h"
#include "qcow2/base/file.h"
#include "qcow2/base/op.h"

// Longest single write in bytes.
#define RUN_MAX (1u << 20)
// Initial size of the buffer: a few of the largest pieces.
#define BUFFER_MIN 65536u

void writeback_free(struct writeback *wb)
{
    free(wb->pieces);
    free(wb->buffer);
    wb->pieces = NULL;
    wb->buffer = NULL;
    wb->capacity = wb->size = wb->count = wb->used = 0;
}

// Aligned, so that O_DIRECT needs no copy.
static unsigned char *larger_buffer(const struct writeback *wb, size_t size)
{
    unsigned char *buffer = NULL;

    if (posix_memalign((void **)&buffer, 4096, size) != 0)
        return NULL;
    if (wb->used > 0)
        memcpy(buffer, wb->buffer, wb->used);
    return buffer;
}

void *writeback_room(struct writeback *wb, size_t length)
{
    // A buffer of twice the size holds the present pieces and one more.
    assert(length <= BUFFER_MIN);
    if (wb->count == wb->capacity) {
        size_t capacity = wb->capacity ? wb->capacity * 2 : 16;
        struct writeback_piece *pieces = realloc(wb->pieces, capacity * sizeof(*pieces));

        if (!pieces)
            return NULL;
        wb->pieces = pieces;
        wb->capacity = capacity;
    }
    if (wb->used + length > wb->size) {
        size_t size = wb->size ? wb->size * 2 : BUFFER_MIN;
        unsigned char *buffer = larger_buffer(wb, size);

        if (!buffer)
            return NULL;
        free(wb->buffer);
        wb->buffer = buffer;
        wb->size = size;
    }
    return wb->buffer + wb->used;
}

void writeback_add(struct writeback *wb, const struct writeback_piece *piece)
{
    wb->pieces[wb->count] = *piece;
    wb->pieces[wb->count].at = wb->used;
    wb->count++;
    wb->used += piece->length;
}

static void submit_more(struct writeback *wb);

static void write_ended(struct file_io *io)
{
    struct writeback_slot *slot = container_of(io, struct writeback_slot, io);
    struct writeback *wb = slot->writeback;

    slot->busy = false;
    wb->active--;
    if (io->result < 0 && wb->result == 0)
        wb->result = io->result;
    submit_more(wb);
    if (wb->active == 0) {
        wb->op->wait.result = wb->result;
        op_post(wb->op);
    }
}

static void submit_run(struct writeback *wb, struct writeback_slot *slot)
{
    const struct writeback_piece *first = &wb->pieces[wb->next++];
    size_t length = first->length;

    while (wb->next < wb->count && wb->pieces[wb->next].offset == first->offset + length &&
           length + wb->pieces[wb->next].length <= RUN_MAX)
        length += wb->pieces[wb->next++].length;
    slot->busy = true;
    slot->writeback = wb;
    slot->iov = (struct iovec){.iov_base = wb->buffer + first->at, .iov_len = length};
    slot->io = (struct file_io){.kind = FILE_WRITE,
                                .offset = first->offset,
                                .length = length,
                                .iov = &slot->iov,
                                .iovcnt = 1,
                                .done = write_ended};
    wb->active++;
    file_submit(wb->file, &slot->io);
}

static void submit_more(struct writeback *wb)
{
    for (size_t i = 0; i < WRITEBACK_DEPTH && wb->next < wb->count && wb->result == 0; i++) {
        if (!wb->slots[i].busy)
            submit_run(wb, &wb->slots[i]);
    }
}

void writeback_start(struct writeback *wb, struct op *op, struct file *file)
{
    wb->op = op;
    wb->file = file;
    wb->next = 0;
    wb->result = 0;
    submit_more(wb);
    if (wb->active == 0) {
        op->wait.result = 0;
        op_post(op);
    }
}

void writeback_clear(struct writeback *wb)
{
    wb->count = 0;
    wb->used = 0;
}
