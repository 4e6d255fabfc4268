// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/scenario.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "qcow2/image.h"

// Streams of random numbers; each op has its own from STREAM_OPS on.
enum { STREAM_SCENARIO, STREAM_MEMORY = 4, STREAM_GENERATIONS = 16, STREAM_OPS = 64 };

// Values of the layers (pattern.h); guests' writes are numbered from 1000 on.
#define VALUE_IMAGE 1u
#define VALUE_BACKING 20u

// A backing image has clusters as large as those of the image, or larger ones up to this.
#define BACKING_CLUSTER_BITS_MAX 16u

// Clusters behind an image on a block device: enough for all that guests may write, and tables.
// Fewer of the large clusters are needed.
#define DEVICE_CLUSTERS 4096ull
#define DEVICE_BYTES_MAX (256ull << 20)

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

// ---- The image

struct shape {
    unsigned percent;
    unsigned cluster_bits;
    uint64_t clusters;      // most guest clusters
    uint64_t zone_clusters; // most of them in one zone
};

// Small clusters have the most tables for their bytes, and so the most possible faults.
static const struct shape shapes[] = {
    {35, 9, 8192, 160}, {8, 10, 8192, 96},  {24, 12, 16384, 48},
    {5, 14, 16384, 24}, {26, 16, 16384, 8}, {2, 21, 2048, 2},
};

static const struct shape *draw_shape(struct rng *rng)
{
    uint64_t at = rng_below(rng, 100);
    const struct shape *shape = shapes;

    while (at >= shape->percent) {
        at -= shape->percent;
        shape++;
    }
    return shape;
}

static void draw_zones(struct forge_recipe *r, const struct shape *shape, struct rng *rng)
{
    uint64_t cluster = 1ull << r->cluster_bits;
    uint64_t clusters = (r->size + cluster - 1) / cluster;

    r->zone_count = (unsigned)rng_between(rng, 1, FORGE_ZONES_MAX);
    if (r->zone_count > clusters)
        r->zone_count = 1;
    uint64_t slice = clusters / r->zone_count;
    for (unsigned i = 0; i < r->zone_count; i++) {
        uint64_t count = rng_between(rng, 1, smaller(slice, shape->zone_clusters));
        uint64_t first = i * slice + rng_below(rng, slice - count + 1);

        // The end of the disk is a special case, so it is often included.
        if (i + 1 == r->zone_count && rng_percent(rng, 50))
            first = clusters - count;
        r->zones[i].offset = first * cluster;
        r->zones[i].length = smaller(count * cluster, r->size - first * cluster);
    }
}

static void draw_size(struct forge_recipe *r, const struct shape *shape, struct rng *rng)
{
    uint64_t cluster = 1ull << r->cluster_bits;

    r->size = rng_scaled(rng, shape->clusters) * cluster;
    if (rng_percent(rng, 30) && cluster > 512)
        r->size -= rng_below(rng, cluster / 512) * 512;
    else if (rng_percent(rng, 10))
        r->size -= rng_below(rng, 512);
}

static void draw_layers(struct forge_recipe *r, struct rng *rng)
{
    r->fill = (unsigned)rng_between(rng, 0, 9) * 10;
    r->compressed = rng_percent(rng, 40);
    r->zstd = r->version >= 3 && rng_percent(rng, 35);
    r->gaps = rng_percent(rng, 35);
    // The refcount table is easily full only with the smallest clusters.
    r->leaks = rng_percent(rng, r->cluster_bits == 9 ? 55 : 20);
    // A refcount of one bit cannot express sharing.
    if (r->refcount_order > 0 && rng_percent(rng, 40))
        r->snapshots = (unsigned)rng_between(rng, 1, FORGE_SNAPSHOTS_MAX);
}

static void draw_image(struct scenario *s, struct rng *rng)
{
    const struct shape *shape = draw_shape(rng);
    struct forge_recipe *r = &s->image;

    r->cluster_bits = shape->cluster_bits;
    r->version = rng_percent(rng, 15) ? 2 : 3;
    r->refcount_order = r->version == 2 || rng_percent(rng, 40) ? 4 : (unsigned)rng_below(rng, 7);
    r->lazy_refcounts = r->version == 3 && rng_percent(rng, 65);
    r->value = VALUE_IMAGE;
    draw_size(r, shape, rng);
    draw_zones(r, shape, rng);
    draw_layers(r, rng);
    if (r->version == 3 && rng_percent(rng, 20)) {
        r->bitmaps = (unsigned)rng_between(rng, 1, FORGE_BITMAPS_MAX);
        r->stale_bitmaps = rng_percent(rng, 25);
        r->later_extension = rng_percent(rng, 30);
    }
    s->created = rng_percent(rng, 20);
    if (s->created) {
        r->snapshots = 0;
        r->bitmaps = 0;
        r->stale_bitmaps = false;
        s->preallocated = rng_percent(rng, 20) && r->size < (8u << 20);
    }
}

static uint64_t draw_backing_size(const struct forge_recipe *above, struct rng *rng)
{
    if (rng_percent(rng, 60))
        return rng_between(rng, 1, above->size);
    if (rng_percent(rng, 30))
        return above->size + rng_below(rng, 8ull << above->cluster_bits);
    return above->size;
}

static void draw_backing_image(struct scenario_backing *b, const struct forge_recipe *above,
                               unsigned level, struct rng *rng)
{
    struct forge_recipe *r = &b->recipe;

    // qemu-img ignores bytes behind the last whole sector of an image.
    b->size = (b->size + 511) / 512 * 512;
    *r = (struct forge_recipe){.version = rng_percent(rng, 20) ? 2 : 3,
                               .cluster_bits = above->cluster_bits,
                               .refcount_order = 4,
                               .size = b->size,
                               .value = VALUE_BACKING + level * (FORGE_SNAPSHOTS_MAX + 1)};
    if (r->cluster_bits < BACKING_CLUSTER_BITS_MAX && rng_percent(rng, 30))
        r->cluster_bits = (unsigned)rng_between(rng, r->cluster_bits, BACKING_CLUSTER_BITS_MAX);
    draw_layers(r, rng);
    // Clusters that it lacks are looked up in the next backing image.
    r->fill = level > 0 || rng_percent(rng, 50) ? 80 : 40;
    for (unsigned i = 0; i < above->zone_count; i++) {
        struct forge_zone zone = above->zones[i];

        if (zone.offset >= b->size)
            continue;
        zone.length = smaller(zone.length, b->size - zone.offset);
        r->zones[r->zone_count++] = zone;
    }
}

static void draw_backings(struct scenario *s, struct rng *rng)
{
    static const char *const names[] = {"base1", "base2", "base3", "base4", "base5"};
    struct forge_recipe *above = &s->image;

    if (s->preallocated || rng_percent(rng, 60))
        return;
    unsigned depth = rng_percent(rng, 60) ? 1 : (unsigned)rng_between(rng, 2, SCENARIO_DEPTH_MAX);
    while (s->depth < depth) {
        struct scenario_backing *b = &s->backings[s->depth];

        b->name = names[s->depth];
        b->size = draw_backing_size(above, rng);
        b->raw = s->depth + 1 == depth && rng_percent(rng, 50);
        above->backing_name = b->name;
        above->backing_format = b->raw ? "raw" : "qcow2";
        // Every byte of a raw file is stored, so it is kept small.
        if (b->raw)
            b->size = smaller(b->size, 4u << 20);
        else
            draw_backing_image(b, above, s->depth, rng);
        above = &b->recipe;
        s->depth++;
    }
}

static void draw_serving(struct scenario *s, struct rng *rng)
{
    static const unsigned mixes[][6] = {
        // READ, WRITE, DISCARD, WRITE_ZEROES, FLUSH, BLOCK_STATUS
        {25, 40, 10, 12, 8, 5},
        {10, 70, 5, 5, 10, 0},
        {20, 35, 35, 5, 5, 0},
        {20, 30, 5, 35, 8, 2},
        {15, 45, 25, 10, 5, 0},
        {40, 30, 10, 10, 2, 8},
        // Few changes in one sync: no op's barrier covers for one that another op forgot.
        {5, 50, 0, 5, 40, 0},
        {10, 45, 10, 5, 30, 0},
        {2, 8, 30, 30, 30, 0},
    };

    s->unmap = rng_percent(rng, 80);
    s->force_fua = rng_percent(rng, 4);
    if (rng_percent(rng, 15))
        s->detect_zeroes = rng_percent(rng, 50) ? DETECT_ZEROES_ON : DETECT_ZEROES_UNMAP;
    s->offload = rng_percent(rng, 70);
    s->loans = rng_percent(rng, 60);
    if (rng_percent(rng, 15))
        s->budget = SCENARIO_RESERVE + rng_below(rng, SCENARIO_RESERVE);
    s->lazy = LAZY_FROM_HEADER;
    if (rng_percent(rng, 15))
        s->lazy = s->image.version == 3 && rng_percent(rng, 50) ? LAZY_ON : LAZY_OFF;
    s->cache_bytes = rng_percent(rng, 40) ? 1 : rng_percent(rng, 50) ? 16384 : 0;
    if (rng_percent(rng, 20))
        s->unsupported = (unsigned)rng_below(rng, 8) << FILE_ZERO;
    s->no_extents = rng_percent(rng, 20);
    if (rng_percent(rng, 15)) {
        s->no_extents = true;
        s->device = smaller(DEVICE_CLUSTERS << s->image.cluster_bits, DEVICE_BYTES_MAX);
        s->device -= rng_below(rng, s->device / 2);
        // The device is seldom full.
        s->device_tight = rng_percent(rng, 20);
        if (s->device_tight)
            s->device = rng_scaled(rng, 256ull << s->image.cluster_bits);
    }
    s->generations = (unsigned)rng_between(rng, 1, SCENARIO_GENERATIONS_MAX);
    memcpy(s->weights, mixes[rng_below(rng, sizeof(mixes) / sizeof(mixes[0]))], sizeof(s->weights));
    s->hot = rng_percent(rng, 30) ? 0 : (unsigned)rng_between(rng, 20, 90);
    s->longest = rng_percent(rng, 25) ? SCENARIO_PAYLOAD_MAX : 4ull << s->image.cluster_bits;
    s->longest = smaller(s->longest, SCENARIO_PAYLOAD_MAX);
}

void scenario_draw(struct scenario *s, uint64_t seed, const struct scenario_limits *limits)
{
    struct rng rng = rng_stream(seed, STREAM_SCENARIO);

    *s = (struct scenario){.seed = seed, .limits = *limits};
    draw_image(s, &rng);
    draw_backings(s, &rng);
    draw_serving(s, &rng);
    if (limits->generations > 0 && s->generations > limits->generations)
        s->generations = limits->generations;
}

// ---- A generation

static void draw_fault(struct sim_fault *fault, struct rng *rng)
{
    static const struct sim_fault kinds[] = {
        {.class = SIM_READ, .error = -EIO},     {.class = SIM_WRITE, .error = -EIO},
        {.class = SIM_BARRIER, .error = -EIO},  {.class = SIM_BARRIER, .error = -ENOSPC},
        {.class = SIM_WRITE, .error = -ENOSPC}, {.class = SIM_WRITE, .error = -ENOSPC},
        {.class = SIM_GROW, .error = -ENOSPC},  {.class = SIM_GROW, .error = -ENOSPC},
    };

    *fault = kinds[rng_below(rng, sizeof(kinds) / sizeof(kinds[0]))];
    fault->first = fault->class == SIM_BARRIER || fault->class == SIM_GROW ? rng_scaled(rng, 16) - 1
                                                                           : rng_scaled(rng, 256);
    fault->count = rng_scaled(rng, 12);
}

// Draws how bytes pass between guests and the server. In half of the generations they pass at once.
static void draw_network(struct scenario_generation *g, struct rng *rng)
{
    g->guests = rng_percent(rng, 40) ? 1 : (unsigned)rng_between(rng, 2, SCENARIO_GUESTS_MAX);
    if (rng_percent(rng, 50)) {
        g->portion = rng_scaled(rng, SCENARIO_PAYLOAD_MAX);
        g->deaf = rng_percent(rng, 50) ? 0 : (unsigned)rng_between(rng, 10, 95);
    }
    g->leave = rng_percent(rng, 70) ? 0 : (unsigned)rng_between(rng, 1, 10);
    // Mostly when all ops have been started.
    g->stop_at = rng_percent(rng, 70) ? SCENARIO_OPS_MAX : (unsigned)rng_below(rng, g->ops + 1);
}

void scenario_draw_generation(const struct scenario *s, unsigned number, bool last,
                              struct scenario_generation *g)
{
    struct rng rng = rng_stream(s->seed, STREAM_GENERATIONS + number);
    struct rng salted = rng_stream(s->seed + (s->limits.salt << 32),
                                   STREAM_GENERATIONS + SCENARIO_GENERATIONS_MAX + number);

    *g = (struct scenario_generation){.number = number};
    g->ops = (unsigned)rng_scaled(&rng, SCENARIO_OPS_MAX);
    g->depth = (unsigned)rng_scaled(&rng, 32);
    g->pause = rng_percent(&rng, 50) ? 20 : 400;
    g->delays = (enum sim_delays)rng_below(&rng, SIM_DELAYS_COUNT);
    g->clean =
        rng_percent(&rng, 45) && !s->limits.no_clean ? (unsigned)rng_between(&rng, 1, 40) : 0;
    g->read_only = rng_percent(&rng, 8) && !last;
    g->finish = last || rng_percent(&rng, 60);
    if (s->limits.ops > 0 && g->ops > s->limits.ops)
        g->ops = s->limits.ops;
    if (s->limits.depth > 0 && g->depth > s->limits.depth)
        g->depth = s->limits.depth;
    g->fua = 15;
    if (rng_percent(&rng, 35))
        g->fua = rng_percent(&rng, 50) ? 60 : 100;
    draw_network(g, &rng);
    g->room = UINT64_MAX;
    if (last)
        return;
    if (rng_percent(&rng, 12)) {
        scenario_make_idle(g);
        if (rng_percent(&salted, 60))
            return;
    }
    struct rng memory = rng_stream(s->seed, STREAM_MEMORY + number);
    if (!s->limits.no_faults && rng_percent(&memory, 12)) {
        g->heap_first = rng_scaled(&memory, 2ull * g->ops + 20);
        g->heap_count = rng_scaled(&memory, 8);
    }
    // Most depends on a barrier at the moment before it ends.
    if (rng_percent(&salted, 40))
        g->cut_barrier = rng_scaled(&salted, 16);
    else if (rng_percent(&salted, 70))
        g->cut_at = 1 + rng_below(&salted, 30 + 7ull * g->ops);
    // A disk that is nearly full: space cannot be reserved ahead, and in the end not at all.
    if (!s->limits.no_faults && rng_percent(&rng, 15))
        g->room = rng_scaled(&rng, 64ull << s->image.cluster_bits);
    if (!s->limits.no_faults && rng_percent(&rng, 30)) {
        g->fault_count = (unsigned)rng_between(&rng, 1, SIM_FAULTS_MAX);
        for (unsigned i = 0; i < g->fault_count; i++)
            draw_fault(&g->faults[i], &rng);
    }
}

void scenario_make_idle(struct scenario_generation *g)
{
    g->reads_only = g->finish = true;
    g->read_only = false;
    g->ops = (unsigned)smaller(g->ops, 5);
    g->fault_count = 0;
    g->heap_count = 0;
    g->room = UINT64_MAX;
}

// ---- An op

static uint64_t draw_alignment(const struct scenario *s, struct rng *rng)
{
    uint64_t cluster = 1ull << s->image.cluster_bits;

    switch (rng_below(rng, 8)) {
    case 0:
        return 1;
    case 1:
    case 2:
        return 512;
    case 3:
        return smaller(4096, cluster);
    case 4:
        return cluster / 2;
    default:
        return cluster;
    }
}

static void draw_range(const struct scenario *s, struct rng *rng, uint64_t longest,
                       struct scenario_op *op)
{
    const struct forge_zone *zone = &s->image.zones[rng_below(rng, s->image.zone_count)];
    uint64_t alignment = draw_alignment(s, rng);
    uint64_t end = zone->offset + zone->length;
    uint64_t at = rng_below(rng, zone->length);

    // Few places, so that ops meet each other.
    if (rng_percent(rng, s->hot))
        at = smaller(at, rng_below(rng, 3) << s->image.cluster_bits);
    op->offset = zone->offset + at / alignment * alignment;
    op->length = rng_scaled(rng, (longest + alignment - 1) / alignment) * alignment;
    op->length = smaller(op->length, smaller(longest, end - op->offset));
}

void scenario_draw_op(const struct scenario *s, const struct scenario_generation *g, unsigned i,
                      struct scenario_op *op)
{
    struct rng rng = rng_stream(s->seed, STREAM_OPS + SCENARIO_OP_NUMBER(g->number, i));
    uint64_t at = rng_below(&rng, 100);

    *op = (struct scenario_op){.kind = OP_READ};
    while (at >= s->weights[op->kind]) {
        at -= s->weights[op->kind];
        op->kind++;
    }
    if (g->reads_only)
        op->kind = OP_READ;
    op->pause = rng_below(&rng, g->pause + 1);
    op->clean_before = rng_percent(&rng, g->clean);
    draw_range(s, &rng,
               op->kind == OP_READ || op->kind == OP_WRITE ? s->longest : 2 * SCENARIO_PAYLOAD_MAX,
               op);
    if (op->kind == OP_WRITE || op->kind == OP_DISCARD || op->kind == OP_WRITE_ZEROES)
        op->flags |= rng_percent(&rng, g->fua) ? OP_FUA : 0;
    if (op->kind == OP_WRITE_ZEROES) {
        op->flags |= rng_percent(&rng, 40) ? OP_NO_HOLE : 0;
        op->flags |= rng_percent(&rng, 10) ? OP_FAST_ZERO : 0;
    }
    op->zeros = op->kind == OP_WRITE && rng_percent(&rng, 5);
    op->tick_before = rng_percent(&rng, 5);
    op->whole = rng_percent(&rng, 20);
    op->guest = (unsigned)rng_below(&rng, g->guests);
    if (rng_percent(&rng, g->leave))
        op->leave = (enum scenario_leave)rng_between(&rng, LEAVE_DISCONNECT, LEAVE_CUT_OFF);
}

void scenario_describe(const struct scenario *s, char *text, size_t bytes)
{
    const struct forge_recipe *r = &s->image;

    snprintf(text, bytes,
             "v%u, clusters of %u, refcounts of %u bits, lazy=%s%s, size %llu, %u backing%s%s%s%s, "
             "%u snapshots, cache %zu, %s%s%s",
             r->version, 1u << r->cluster_bits, 1u << r->refcount_order,
             r->lazy_refcounts ? "on" : "off",
             s->lazy == LAZY_ON    ? " (on)"
             : s->lazy == LAZY_OFF ? " (off)"
                                   : "",
             (unsigned long long)r->size, s->depth,
             s->depth > 0 && s->backings[s->depth - 1].raw ? " (raw)" : "",
             s->preallocated ? ", preallocated"
             : s->created    ? ", created"
                             : "",
             !r->compressed || s->created ? ""
             : r->zstd                    ? ", zstd"
                                          : ", compressed",
             s->unmap ? ", unmap" : "", r->snapshots, s->cache_bytes,
             s->no_extents ? "no extents" : "extents", s->loans ? ", loans" : "",
             s->device > 0 ? ", block device" : "");
}
