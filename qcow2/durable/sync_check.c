// SPDX-License-Identifier: Apache-2.0
#include "qcow2/durable/sync_check.h"

#include <assert.h>

#include "qcow2/core/dirty_bit.h"
#include "qcow2/core/image_state.h"
#include "qcow2/core/sync_queue.h"
#include "qcow2/durable/recover.h"
#include "qcow2/durable/sync_state.h"
#include "qcow2/mapping/cache.h"
#include "qcow2/space/quarantine.h"

void sync_facts_begin(struct sync_facts *facts, struct sync_demand demand)
{
    *facts = (struct sync_facts){.exposed = demand.data || demand.barrier ? SYNC_WROTE_DATA : 0};
}

void sync_facts_barrier(struct sync_facts *facts)
{
    facts->exposed = 0;
    facts->barriers++;
}

// Rules 2, 3 and 4: before tables are written, the data and tables that they refer to, the dirty
// bit and the refcounts are durable.
static void assert_tables_may_be_written(const struct image *image)
{
    const struct sync *sync = image->sync;

    if (sync->writeback.count == 0)
        return;
    assert(!(sync->facts.exposed & (SYNC_WROTE_HEADER | SYNC_WROTE_REFCOUNTS)));
    assert(!sync->demand.barrier || sync->facts.barriers > 0);
    assert(dirty_bit_on(image->dirty_bit) || !image->lazy);
    assert(image->dirty_bit != DIRTY_BIT_UNSURE && image->dirty_bit != DIRTY_BIT_CLEARING);
}

// Rule 1: data counts as durable only after a barrier covers it and its tables.
static void assert_durable(const struct image *image)
{
    assert(image->sync->facts.exposed == 0);
    assert(image->dirty_bit != DIRTY_BIT_SETTING);
}

// The dirty bit is cleared only behind a barrier that covers everything else, and only when the
// refcounts are complete.
static void assert_may_be_marked_clean(const struct image *image)
{
    const struct sync *sync = image->sync;

    assert(!(sync->facts.exposed & ~(unsigned)SYNC_WROTE_HEADER));
    assert(image->dirty_bit == DIRTY_BIT_CLEARING);
    assert(recover_complete(image));
}

void assert_sync_state(const struct image *image, enum sync_state state, int result)
{
    const struct sync *sync = image->sync;

    // Rule 6: one sync runs at a time.
    assert(image->syncs.sync == &sync->op && !sync->op.wait.task.queued);
    if (state == SYNC_BEGIN) {
        assert(image->syncs.state == SYNC_QUEUE_DUE);
        assert(TAILQ_EMPTY(&image->quarantine->syncing) && sync->writeback.count == 0);
        assert(!image->read_only);
        // No sync that has ended is still about to write the dirty bit.
        assert(image->dirty_bit != DIRTY_BIT_SETTING && image->dirty_bit != DIRTY_BIT_CLEARING);
        return;
    }
    assert(image->syncs.state == SYNC_QUEUE_RUNNING ||
           image->syncs.state == SYNC_QUEUE_RUNNING_DUE);
    // Each slice that is being written has its private copy, and stays in memory.
    assert(image->cache->writing_count <= sync->writeback.count);
    if (state == SYNC_TABLES && result == 0)
        assert_tables_may_be_written(image);
    if (state == SYNC_DURABLE && result == 0)
        assert_durable(image);
    if (state > SYNC_DURABLE) {
        // Rule 5: references that the sync unlinked were released, or wait for the next sync.
        assert(TAILQ_EMPTY(&image->quarantine->syncing) && sync->writeback.count == 0);
    }
    if (state == SYNC_CLEAN_BARRIER && result == 0)
        assert(sync->facts.exposed == 0);
    if (state == SYNC_CLEAN_WRITTEN && result == 0)
        assert_may_be_marked_clean(image);
    if (state == SYNC_CLEAN_DURABLE && result == 0)
        assert(sync->facts.exposed == 0);
}
