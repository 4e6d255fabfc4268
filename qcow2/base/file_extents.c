// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/file_extents.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2/base/container.h"
#include "qcow2/base/file.h"
#include "qcow2/base/op.h"
#include "qcow2/base/waitq.h"

struct file_extents {
    struct known_extents known;
    // The host has answered that it cannot tell.
    bool cannot_tell;
    // Look-ups since the last answer that found a known extent.
    unsigned hits;
    size_t asked_max;
    // The question to the host that is in flight.
    struct file_io io;
    struct file_extent answer[FILE_EXTENTS_ASKED_MAX];
    struct waitq waiters;
};

void file_extents_distrust(struct file *file)
{
    if (file->known && file->shared)
        known_extents_changed(file->known, 0, UINT64_MAX);
}

static void file_extents_answered(struct file_io *io)
{
    struct file_extents *e = container_of(io, struct file_extents, io);

    e->hits = 0;
    e->cannot_tell = io->result == -EOPNOTSUPP;
    known_extents_answer(&e->known, e->answer, io->result == 0 ? io->extent_count : 0);
    waitq_wake(&e->waiters, 0);
}

static void file_extents_ask(struct file *file, struct file_extents *e, uint64_t offset,
                             uint64_t length)
{
    // The first hit belongs to the op that asked. Only a second one shows that more extents are
    // useful.
    if (e->hits > 1 && e->asked_max < FILE_EXTENTS_ASKED_MAX)
        e->asked_max *= 2;
    else if (e->hits <= 1 && e->asked_max > FILE_EXTENTS_ASKED_MIN)
        e->asked_max /= 2;
    known_extents_ask(&e->known, offset);
    e->io = (struct file_io){.kind = FILE_EXTENTS,
                             .offset = offset,
                             .length = length,
                             .extents = e->answer,
                             .extent_max = e->asked_max,
                             .hole_min = e->known.coarse ? FILE_EXTENTS_COARSE : 0,
                             .done = file_extents_answered};
    file_submit(file, &e->io);
}

static struct file_extents *extents_of(struct file *file)
{
    if (!file->extents) {
        struct file_extents *e = calloc(1, sizeof(*e));

        if (!e)
            return NULL;
        waitq_init(&e->waiters, "where the file has holes");
        e->asked_max = FILE_EXTENTS_ASKED_MAX;
        file->extents = e;
        file->known = &e->known;
    }
    return file->extents;
}

int file_extents_get(struct op *op, struct file *file, uint64_t offset, uint64_t *length,
                     enum file_extent_kind *kind)
{
    struct file_extents *e = extents_of(file);

    *kind = FILE_EXTENT_DATA;
    if (!e || e->cannot_tell || *length == 0)
        return 0;
    if (known_extents_find(&e->known, offset, length, kind)) {
        op->extent_tries = 0;
        e->hits++;
        return 0;
    }
    if (op->extent_tries == FILE_EXTENTS_TRIES) {
        op->extent_tries = 0;
        return 0;
    }
    op->extent_tries++;
    if (!e->known.asking)
        file_extents_ask(file, e, offset, *length);
    return op_park(op, &e->waiters);
}
