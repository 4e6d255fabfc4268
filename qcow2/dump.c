// SPDX-License-Identifier: Apache-2.0
#include "qcow2/dump.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "qcow2/base/op.h"
#include "qcow2/core/dirty_bit.h"
#include "qcow2/core/host.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/recover.h"
#include "qcow2/durable/sync_state.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/quarantine.h"

// Longest line of a dump in bytes.
#define DUMP_LINE_MAX 300

struct dump {
    void (*line)(void *context, const char *text);
    void *context;
};

__attribute__((format(printf, 2, 3))) static void say(const struct dump *dump, const char *format,
                                                      ...)
{
    char text[DUMP_LINE_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    dump->line(dump->context, text);
}

static void say_op(const struct dump *dump, const struct op *op)
{
    char text[DUMP_LINE_MAX - 2];

    op_describe(op, text, sizeof(text));
    say(dump, "  %s", text);
}

static void dump_requests(const struct image *image, const struct dump *dump)
{
    const struct op *op;
    size_t said = 0;

    say(dump, "requests: %zu", image->op_count);
    LIST_FOREACH (op, &image->running, running_link) {
        if (said++ == DUMP_REQUESTS_MAX) {
            say(dump, "  and %zu more", image->op_count - DUMP_REQUESTS_MAX);
            break;
        }
        say_op(dump, op);
    }
}

static const char *const queue_states[] = {
    [SYNC_QUEUE_IDLE] = "idle",
    [SYNC_QUEUE_DUE] = "due",
    [SYNC_QUEUE_RUNNING] = "running",
    [SYNC_QUEUE_RUNNING_DUE] = "running, and another is due",
};

static void dump_sync(const struct image *image, const struct dump *dump)
{
    say(dump, "sync: %s; data to make durable: %s; barrier before tables: %s; dirty bit: %s",
        queue_states[image->syncs.state], image->syncs.demand.data ? "yes" : "no",
        image->syncs.demand.barrier ? "yes" : "no",
        dirty_bit_on(image->dirty_bit) ? "set" : "clear");
    say(dump, "L2 slices: %zu in memory, %zu dirty, %zu being written", image->cache->count,
        image->cache->dirty_count, image->cache->writing_count);
    if (image->syncs.state != SYNC_QUEUE_IDLE)
        say_op(dump, &image->sync->op);
}

static const char *const releaser_states[] = {
    [RELEASER_IDLE] = "idle",
    [RELEASER_RUNNING] = "running",
    [RELEASER_WAITING] = "waiting for the grace period",
};

static void dump_background(const struct image *image, const struct dump *dump)
{
    say(dump, "quarantine: %zu extents, releaser %s", image->quarantine->count,
        releaser_states[image->quarantine->releaser_state]);
    if (image->punch->running)
        say_op(dump, &image->punch->op);
    if (image->recovery->running)
        say(dump, "recovery: counts clusters, %" PRIu64 " faults so far", image->recovery->faults);
    if (image->latched_error < 0)
        say(dump, "writes are refused since an earlier error");
}

void image_dump(const struct image *image, void (*line)(void *context, const char *text),
                void *context)
{
    const struct dump dump = {.line = line, .context = context};

    dump_requests(image, &dump);
    if (image->format != IMAGE_FORMAT_QCOW2 || image->read_only)
        return;
    dump_sync(image, &dump);
    dump_background(image, &dump);
}
