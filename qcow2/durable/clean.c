// SPDX-License-Identifier: Apache-2.0
#include "qcow2/durable/clean.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "qcow2/base/container.h"
#include "qcow2/base/op.h"
#include "qcow2/core/dirty_bit.h"
#include "qcow2/core/host.h"
#include "qcow2/core/image_state.h"
#include "qcow2/durable/recover.h"
#include "qcow2/durable/sync.h"
#include "qcow2/space/punch.h"
#include "qcow2/space/quarantine.h"
#include "qcow2/space/refcount.h"

// Rounds of one clean point. A round is a sync, an empty quarantine, punched holes, and written
// refcounts. A refcount table that moves leaves its old clusters to the quarantine, which takes
// another round; without lazy refcounts it may move in the first sync already.
#define CLEAN_ROUNDS 4

enum { CLEAN_SYNC, CLEAN_RELEASE, CLEAN_PUNCH, CLEAN_REFCOUNTS, CLEAN_ROUND_ENDED };

static const char *const state_names[] = {
    [CLEAN_SYNC] = "sync",           [CLEAN_RELEASE] = "release",         [CLEAN_PUNCH] = "punch",
    [CLEAN_REFCOUNTS] = "refcounts", [CLEAN_ROUND_ENDED] = "round ended",
};

struct cleaner {
    struct op op; // internal
    int rounds;
    image_clean_done *done;
    void *context;
};

static void end_clean(struct cleaner *cleaner, int result)
{
    cleaner->done(cleaner->context, result);
    free(cleaner);
}

static void clean_step(struct op *op)
{
    struct cleaner *cleaner = container_of(op, struct cleaner, op);
    struct image *image = op->image;
    int result = op->wait.result;

    while (result == 0) {
        switch (op->state) {
        case CLEAN_SYNC:
            op->state = CLEAN_RELEASE;
            result = sync_flush(op);
            break;
        case CLEAN_RELEASE:
            op->state = CLEAN_PUNCH;
            quarantine_kick(image);
            if (!TAILQ_EMPTY(&image->quarantine->pending)) {
                // An op, or the sync itself, has given up references since the sync began.
                op->state = CLEAN_SYNC;
                result = ++cleaner->rounds == CLEAN_ROUNDS ? -EBUSY : 0;
            } else if (!quarantine_empty(image->quarantine)) {
                result = op_park(op, &image->quarantine->empty);
            }
            break;
        case CLEAN_PUNCH:
            op->state = CLEAN_REFCOUNTS;
            punch_all(image);
            if (!punch_idle(image->punch))
                result = op_park(op, &image->punch->idle);
            break;
        case CLEAN_REFCOUNTS:
            op->state = CLEAN_ROUND_ENDED;
            result = sync_clean(op);
            break;
        default:
            if (quarantine_empty(image->quarantine) || ++cleaner->rounds == CLEAN_ROUNDS) {
                end_clean(cleaner, 0);
                return;
            }
            op->state = CLEAN_SYNC;
            break;
        }
    }
    if (result < 0)
        end_clean(cleaner, result);
}

static const struct op_machine clean_machine = OP_MACHINE("clean point", clean_step, state_names);

void image_clean(struct image *image, image_clean_done *done, void *context)
{
    struct cleaner *cleaner = calloc(1, sizeof(*cleaner));

    if (!cleaner) {
        done(context, -ENOMEM);
        return;
    }
    cleaner->done = done;
    cleaner->context = context;
    op_init(&cleaner->op, image, image->runq, &clean_machine);
    cleaner->op.state = CLEAN_SYNC;
    op_post(&cleaner->op);
}

bool image_needs_clean(const struct image *image)
{
    if (image->read_only || image->latched_error < 0)
        return false;
    // Raw images are only read.
    assert(image->format == IMAGE_FORMAT_QCOW2);
    if (!recover_complete(image))
        return image->recovery->running || sync_needed(image);
    return dirty_bit_on(image->dirty_bit) || refcounts_dirty(image->refcounts) ||
           !quarantine_empty(image->quarantine) || !punch_idle(image->punch) || sync_needed(image);
}

bool image_tick(struct image *image)
{
    if (image->read_only)
        return false;
    assert(image->format == IMAGE_FORMAT_QCOW2);
    punch_all(image);
    return !punch_idle(image->punch);
}
