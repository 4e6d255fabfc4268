// SPDX-License-Identifier: Apache-2.0
#include "qcow2/mapping/chain.h"

#include <stdlib.h>

#include "qcow2/base/epoch.h"
#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/entry.h"
#include "qcow2/mapping/map.h"

void chain_free(struct chain *chain)
{
    free(chain->places);
    chain->places = NULL;
}

static struct chain_place *chain_place_of(struct chain *chain, uint64_t guest)
{
    return &chain->places[(guest >> CHAIN_PLACE_BITS) % CHAIN_PLACES];
}

// Finds the remembered run that holds guest.
static bool recall(struct chain *chain, uint64_t guest, uint64_t length, struct location *location)
{
    if (!chain->places)
        return false;

    const struct chain_place *place = chain_place_of(chain, guest);
    uint64_t skip = guest - place->guest;
    if (guest < place->guest || skip >= place->location.mapping.length)
        return false;
    *location = place->location;

    struct mapping *m = &location->mapping;
    m->length = m->length - skip < length ? m->length - skip : length;
    if (m->kind == ENTRY_DATA || m->kind == ENTRY_ZERO_ALLOCATED)
        m->host_offset += skip;
    return true;
}

// Returns true when the run in the place that begins at start is the first run of the place.
static bool knows_first_run(struct chain *chain, uint64_t start)
{
    if (!chain->places)
        return false;

    const struct chain_place *place = chain_place_of(chain, start);
    return place->guest == start && place->location.mapping.length > 0;
}

static void remember(struct chain *chain, uint64_t guest, const struct location *location)
{
    if (!chain->places) {
        chain->places = calloc(CHAIN_PLACES, sizeof(*chain->places));
        if (!chain->places)
            return;
    }
    *chain_place_of(chain, guest) = (struct chain_place){guest, *location};
}

// Looks into the layers from layer (at this depth) down, or continues a suspended lookup.
static int descend(struct op *op, struct image *layer, unsigned depth, uint64_t guest,
                   uint64_t length, struct location *location)
{
    struct op_descent *descent = &op->descent;
    struct mapping *m = &location->mapping;

    if (descent->layer && descent->start == guest) {
        layer = descent->layer;
        depth = descent->depth;
        length = descent->left < length ? descent->left : length;
    }
    for (;; layer = layer->backing, depth++) {
        if (guest >= layer->size) {
            // Guest bytes behind the end of a backing image read as zeros.
            *location = (struct location){.mapping = {.length = length}};
            return 0;
        }
        if (length > layer->size - guest)
            length = layer->size - guest;
        int result = map_lookup(op, layer, guest, length, m);
        if (result != 0) {
            descent->layer = layer;
            descent->depth = depth;
            descent->start = guest;
            descent->left = length;
            return result;
        }
        length = m->length;
        if (m->kind != ENTRY_UNALLOCATED || !layer->backing)
            break;
    }
    location->layer = m->kind == ENTRY_UNALLOCATED ? NULL : layer;
    location->depth = location->layer ? depth : 0;
    return 0;
}

// Returns the end of the place of guest. A backing image is asked about a whole place, which is
// more than one op needs.
static uint64_t place_end(uint64_t guest)
{
    return ((guest >> CHAIN_PLACE_BITS) + 1) << CHAIN_PLACE_BITS;
}

// Looks into the image itself. Skips this when the op has looked before it waited for a layer below
// and the mapping has not changed: then each plan needs one slice only, and a cache of two slices
// is enough. Returns as map_lookup. Sets location when the image holds guest, else *length to the
// bytes that it does not hold.
static int look_at_top(struct op *op, uint64_t guest, uint64_t *length, struct location *location)
{
    struct image *image = op->image;
    struct op_descent *descent = &op->descent;

    if (descent->layer && descent->guest == guest && descent->changes == image->mapping_changes) {
        *length = descent->length < *length ? descent->length : *length;
        location->layer = NULL;
        return 0;
    }
    descent->layer = NULL;
    int result = map_lookup(op, image, guest, *length, &location->mapping);
    if (result != 0)
        return result;
    *length = location->mapping.length;
    location->layer = location->mapping.kind == ENTRY_UNALLOCATED ? NULL : image;
    location->depth = location->layer != NULL;
    descent->guest = guest;
    descent->length = *length;
    descent->changes = image->mapping_changes;
    return 0;
}

int chain_lookup(struct op *op, struct location *location)
{
    struct image *image = op->image;
    uint64_t guest = op->pos;
    uint64_t length = op->offset + op->length - guest;

    epoch_enter(&image->grace.plans, &op->plan);
    int result = look_at_top(op, guest, &length, location);

    if (result != 0 || location->layer || !image->backing)
        return result;
    if (recall(image->chain, guest, length, location))
        return 0;

    // Looks from the beginning of the place to its end, so that the next read of another part finds
    // the answer, too. When the place's first run is known and guest lies behind it, the lookup
    // begins at guest instead: a plan that needed both slices at once might never have both in a
    // small cache.
    uint64_t start = place_end(guest) - (1ull << CHAIN_PLACE_BITS);
    uint64_t wanted = guest + length > place_end(guest) ? guest + length : place_end(guest);
    if (!knows_first_run(image->chain, start)) {
        result = descend(op, image->backing, 2, start, wanted - start, location);
        if (result != 0)
            return result;
        remember(image->chain, start, location);
        if (recall(image->chain, guest, length, location))
            return 0;
    }
    result = descend(op, image->backing, 2, guest, length, location);
    if (result == 0)
        remember(image->chain, guest, location);
    return result;
}
