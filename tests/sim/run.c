// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/offline/create.h"
#include "qcow2/image.h"
#include "tests/sim/checker.h"
#include "tests/sim/generation.h"
#include "tests/sim/judge.h"
#include "tests/sim/qemu.h"
#include "tests/sim/repair.h"

// Value of the content of a raw backing file (pattern.h); the layers of images have smaller ones.
#define VALUE_RAW 60u

// Streams of random numbers beside those of scenario.c.
enum { STREAM_FORGE = 1, STREAM_SIM, STREAM_CUTS };

static uint64_t salted(const struct run *run)
{
    return run->scenario.seed + (run->scenario.limits.salt << 32);
}

// Most clusters that the tables of a new image take; and bytes, because few of the largest clusters
// are needed.
#define CREATED_CLUSTERS 2048ull
#define CREATED_BYTES_MAX (256ull << 20)

// Per cent of the states after a cut that are repaired.
#define REPAIRED_PERCENT 12

// ---- The content in the beginning

static void original(void *context, uint64_t sector, void *buf)
{
    const struct run *run = context;
    const struct forge_recipe *image = &run->scenario.image;
    uint64_t guest = sector * MODEL_SECTOR;
    const unsigned char *at = run->originals;

    for (unsigned i = 0; i < image->zone_count; i++) {
        const struct forge_zone *zone = &image->zones[i];
        uint64_t room = (zone->length + MODEL_SECTOR - 1) / MODEL_SECTOR * MODEL_SECTOR;

        if (guest >= zone->offset && guest - zone->offset < room) {
            memcpy(buf, at + (guest - zone->offset), MODEL_SECTOR);
            return;
        }
        at += room;
    }
    // Guests stay inside the zones.
    abort();
}

static void read_originals(struct run *run)
{
    const struct forge_recipe *image = &run->scenario.image;
    uint64_t bytes = 0, at = 0;

    for (unsigned i = 0; i < image->zone_count; i++)
        bytes += image->zones[i].length + MODEL_SECTOR;
    run->originals = calloc(1, bytes);
    if (!run->originals)
        abort();
    for (unsigned i = 0; i < image->zone_count; i++) {
        const struct forge_zone *zone = &image->zones[i];

        reader_bytes(&run->pristine_reader, run->originals + at, zone->offset, zone->length);
        at += (zone->length + MODEL_SECTOR - 1) / MODEL_SECTOR * MODEL_SECTOR;
    }
}

// ---- Making the image

static void create(struct run *run, struct memory *out)
{
    const struct scenario *s = &run->scenario;
    struct create_options options = {.size = s->image.size,
                                     .version = s->image.version,
                                     .cluster_bits = s->image.cluster_bits,
                                     .refcount_order = s->image.refcount_order,
                                     .lazy_refcounts = s->image.lazy_refcounts,
                                     .preallocation = s->preallocated ? CREATE_PREALLOCATE_METADATA
                                                                      : CREATE_PREALLOCATE_OFF,
                                     .backing_name = s->image.backing_name,
                                     .backing_format = s->image.backing_format};
    struct sim_disk disk;
    struct error err;

    sim_disk_init(&disk);
    if (s->device > 0) {
        uint64_t tables = CREATED_CLUSTERS << s->image.cluster_bits;
        struct memory state;

        memory_init(&state);
        forge_device(s->device + (s->preallocated ? s->image.size : 0) +
                         (tables < CREATED_BYTES_MAX ? tables : CREATED_BYTES_MAX),
                     &state);
        sim_disk_restart(&disk, &state);
        disk.device = true;
    }
    struct file *file = file_sim_open(&run->sim, &disk, "image", false);
    if (create_image(file, &options, &err) < 0)
        sim_fail(&run->sim, "cannot create: %s", err.text);
    file_close(file);
    memory_copy(out, &disk.live);
    sim_disk_free(&disk);
}

// Makes the backing images, the farthest first. Returns them for the reader of the image.
static struct reader_backing make_backings(struct run *run, struct rng *rng)
{
    const struct scenario *s = &run->scenario;
    struct reader_backing behind = {0};
    struct memory state;
    char text[READER_TEXT];

    for (unsigned i = s->depth; i-- > 0;) {
        const struct scenario_backing *b = &s->backings[i];

        if (b->raw)
            forge_raw(b->size, VALUE_RAW, &state);
        else
            forge_image(&b->recipe, rng, &state);
        sim_disk_restart(&run->backing_disks[i], &state);
        run->backing_disks[i].no_extents = s->no_extents;
        run->backing_disks[i].loans_made = s->loans;
        if (b->raw) {
            behind = (struct reader_backing){.raw = &run->backing_disks[i].live};
            continue;
        }
        if (!reader_open(&run->backing_readers[i], &run->backing_disks[i].live, behind, text))
            sim_fail(&run->sim, "%s: %s", b->name, text);
        behind = (struct reader_backing){.image = &run->backing_readers[i]};
    }
    return behind;
}

static void make_images(struct run *run)
{
    struct scenario *s = &run->scenario;
    struct rng rng = rng_stream(s->seed, STREAM_FORGE);
    struct reader_backing backing = make_backings(run, &rng);
    struct memory state;
    char text[READER_TEXT];

    if (s->created)
        create(run, &run->pristine);
    else
        run->leaks = forge_image(&s->image, &rng, &run->pristine);
    if (!s->created && s->device > 0)
        forge_device(s->device, &run->pristine);
    run->disk.device = s->device > 0;
    if (!reader_open(&run->pristine_reader, &run->pristine, backing, text)) {
        sim_fail(&run->sim, "the image as made: %s", text);
        return;
    }
    memory_copy(&state, &run->pristine);
    sim_disk_restart(&run->disk, &state);
    run->disk.unsupported = s->unsupported;
    run->disk.no_extents = s->no_extents;
    run->disk.loans_made = s->loans;
    read_originals(run);

    struct judge_result result;
    judge_tables(&run->pristine_reader, true, &result);
    if (result.corruptions > 0 || result.leaks != run->leaks)
        sim_fail(&run->sim, "the image as made: %s, %llu leaks", result.text,
                 (unsigned long long)result.leaks);
}

// ---- Judging a state

// The expectations for a state.
struct expectation {
    bool clean;     // the image was closed, and nothing failed
    bool faults;    // something other than the power failed
    bool no_leaks;  // it was closed for good, cleanly or not
    uint64_t leaks; // clusters that may leak after a clean end
};

static void judge_cluster(struct run *run, const struct reader *reader, uint64_t cluster,
                          unsigned char *bytes)
{
    uint64_t sectors = (reader->cluster_size + MODEL_SECTOR - 1) / MODEL_SECTOR;
    uint64_t first = cluster * sectors;
    unsigned char before[MODEL_SECTOR];
    char text[MODEL_TEXT];

    reader_cluster(reader, &reader->active, cluster, bytes);
    for (uint64_t i = first; i < first + sectors && i < run->model.sector_count; i++) {
        const unsigned char *sector = bytes + (i - first) * MODEL_SECTOR;

        if (!model_touched(&run->model, i)) {
            original(run, i, before);
            uint64_t left = run->model.size - i * MODEL_SECTOR;

            if (memcmp(before, sector, left < MODEL_SECTOR ? left : MODEL_SECTOR) != 0) {
                model_check_cut(&run->model, i, sector, text);
                sim_fail(&run->sim, "after the cut, never written: %s", text);
            }
        } else if (!model_check_cut(&run->model, i, sector, text)) {
            sim_fail(&run->sim, "after the cut: %s", text);
        }
    }
}

static void judge_snapshots(struct run *run, const struct reader *reader, uint64_t cluster,
                            unsigned char *bytes, unsigned char *before)
{
    for (uint32_t i = 0; i < reader->snapshot_count; i++) {
        reader_cluster(reader, &reader->snapshots[i], cluster, bytes);
        reader_cluster(&run->pristine_reader, &run->pristine_reader.snapshots[i], cluster, before);
        if (memcmp(bytes, before, reader->cluster_size) != 0)
            sim_fail(&run->sim, "snapshot %u changed in guest cluster %llu", i,
                     (unsigned long long)cluster);
    }
}

static void judge_content(struct run *run, const struct reader *reader)
{
    const struct forge_recipe *image = &run->scenario.image;
    unsigned char *bytes = malloc(2 * reader->cluster_size);

    if (!bytes)
        abort();
    if (reader->snapshot_count != run->pristine_reader.snapshot_count ||
        reader->size != run->pristine_reader.size)
        sim_fail(&run->sim, "the header changed");
    for (unsigned i = 0; i < image->zone_count; i++) {
        uint64_t first = image->zones[i].offset >> reader->cluster_bits;
        uint64_t end =
            (image->zones[i].offset + image->zones[i].length + reader->cluster_size - 1) >>
            reader->cluster_bits;

        for (uint64_t c = first; c < end && run->sim.failure[0] == '\0'; c++) {
            judge_cluster(run, reader, c, bytes);
            judge_snapshots(run, reader, c, bytes, bytes + reader->cluster_size);
        }
    }
    free(bytes);
}

static bool is_lazy(const struct run *run)
{
    const struct scenario *s = &run->scenario;

    return s->lazy == LAZY_ON || (s->lazy == LAZY_FROM_HEADER && s->image.lazy_refcounts);
}

static void judge_state(struct run *run, const struct memory *state,
                        const struct expectation *expect)
{
    struct reader reader;
    struct judge_result result;
    char text[READER_TEXT];

    run->states++;
    if (!reader_open(&reader, state, run->pristine_reader.backing, text)) {
        sim_fail(&run->sim, "after the cut: %s", text);
        return;
    }
    judge_tables(&reader, expect->clean, &result);
    if (result.corruptions > 0)
        sim_fail(&run->sim, "%s: %s", expect->clean ? "after a clean end" : "after the cut",
                 result.text);
    // Without lazy refcounts a power cut may leave leaks. With them the refcounts are exact while
    // the image says that it is clean; but a refcount table that moved is given up after that.
    uint64_t leaks = expect->leaks + (expect->clean ? 0 : reader.refcount_table_clusters);
    bool exact = (expect->clean || is_lazy(run)) && !expect->faults;
    if ((exact || expect->no_leaks) && result.leaks > leaks)
        sim_fail(&run->sim, "%llu clusters leak %s, the first at offset %llu",
                 (unsigned long long)result.leaks,
                 expect->clean ? "after a clean end" : "after the cut",
                 (unsigned long long)result.first_leak);
    checker_judge(run, state, &result);
    judge_content(run, &reader);
    if (run->with_qemu && run->sim.failure[0] == '\0')
        qemu_judge(run, &reader, result.corruptions + result.leaks == 0 && expect->clean);
    run->leaks = result.leaks;
    run->beyond = result.beyond;
    run->dirty = (reader.incompatible & 1) != 0;
}

// The image goes on from this state, which was judged last.
static void settle(struct run *run, struct memory *state)
{
    const struct forge_recipe *image = &run->scenario.image;
    unsigned char sector[MODEL_SECTOR];
    struct reader reader;
    char text[READER_TEXT];

    if (run->sim.failure[0] != '\0' ||
        !reader_open(&reader, state, run->pristine_reader.backing, text))
        return;
    for (unsigned i = 0; i < image->zone_count; i++) {
        uint64_t first = image->zones[i].offset / MODEL_SECTOR;
        uint64_t end = (image->zones[i].offset + image->zones[i].length - 1) / MODEL_SECTOR + 1;

        for (uint64_t s = first; s < end; s++) {
            if (!model_touched(&run->model, s))
                continue;
            reader_bytes(&reader, sector, s * MODEL_SECTOR, MODEL_SECTOR);
            model_settle(&run->model, s, sector);
        }
    }
    model_settled(&run->model);
    sim_disk_restart(&run->disk, state);
}

// Repairs the image before it is served again, as far as the repair gets.
static void repair_and_judge(struct run *run, struct memory *state,
                             const struct expectation *expect, struct rng *rng)
{
    struct expectation after = *expect;

    if (run->sim.failure[0] != '\0')
        return;
    enum repair_outcome outcome = repair_run(run, state, rng_percent(rng, 40), rng);

    after.clean = outcome == REPAIR_ALL;
    after.leaks = after.clean ? 0 : after.leaks;
    if (run->sim.failure[0] == '\0')
        judge_state(run, state, &after);
}

// The power has gone: judges some of the states that the disk may have, and goes on from the last.
static void judge_cut(struct run *run, const struct scenario_generation *g, bool clean,
                      uint64_t leaks)
{
    struct rng rng = rng_stream(salted(run), STREAM_CUTS + 256ull * (g->number + 1));
    struct expectation expect = {.clean = clean,
                                 .faults = run->sim.faults_hit > 0,
                                 .no_leaks = run->out_of_room,
                                 .leaks = leaks};
    struct memory state;

    run->cuts++;
    // The state after a clean end is also judged as reads would see it.
    if (clean) {
        sim_trace(&run->sim, "state: closed");
        judge_state(run, &run->disk.live, &expect);
    }
    for (unsigned i = 0; i < RUN_STATES && run->sim.failure[0] == '\0'; i++) {
        sim_trace(&run->sim, "state %u", i);
        sim_disk_cut(&run->sim, &run->disk, &rng, &state);
        judge_state(run, &state, &expect);
        // It is rare that entries are kept and the growth of the file is lost: goes on from such a
        // state.
        bool last = i + 1 == RUN_STATES || (run->beyond > 0 && rng_percent(&rng, 60));
        if (rng_percent(&rng, REPAIRED_PERCENT))
            repair_and_judge(run, &state, &expect, &rng);
        if (last) {
            settle(run, &state);
            break;
        }
        memory_free(&state);
    }
}

// ---- The whole

static void set_up(struct run *run)
{
    sim_init(&run->sim, rng_stream(salted(run), STREAM_SIM));
    sim_disk_init(&run->disk);
    for (unsigned i = 0; i < SCENARIO_DEPTH_MAX; i++)
        sim_disk_init(&run->backing_disks[i]);
    memory_init(&run->pristine);
    model_init(&run->model, run->scenario.image.size, original, run);
    run->last_value = 1000;
    run->ops = run->states = run->cuts = run->leaks = run->beyond = 0;
    run->dirty = false;
    run->originals = NULL;
}

static void tear_down(struct run *run)
{
    sim_disk_free(&run->disk);
    for (unsigned i = 0; i < SCENARIO_DEPTH_MAX; i++)
        sim_disk_free(&run->backing_disks[i]);
    memory_free(&run->pristine);
    model_free(&run->model);
    free(run->originals);
}

static void serve_once(struct run *run, unsigned number, bool last)
{
    struct scenario_generation g;

    scenario_draw_generation(&run->scenario, number, last, &g);
    // References beyond the end of the file must be repaired even if nothing is written.
    if (run->beyond > 0 && number % 2 == 0)
        scenario_make_idle(&g);
    // Serving repairs the leaks of a dirty image; another image keeps them.
    uint64_t leaks = run->dirty ? 0 : run->leaks;
    run->out_of_room = false;
    bool clean = generation_run(run, &g);

    // Without room for refcounts everything else is written if the image has a dirty bit.
    if (clean || (run->out_of_room && run->scenario.image.version >= 3))
        model_flushed(&run->model, model_now(&run->model));
    // A block device may be too small for the refcounts.
    if (last && !clean && !run->scenario.device_tight &&
        (run->sim.faults_hit == 0 || run->scenario.device == 0))
        sim_fail(&run->sim, "the last generation did not end well");
    if (run->sim.failure[0] == '\0')
        judge_cut(run, &g, clean, leaks);
}

bool run_scenario(struct run *run, uint64_t seed, const struct scenario_limits *limits, bool trace,
                  bool with_qemu)
{
    scenario_draw(&run->scenario, seed, limits);
    set_up(run);
    run->sim.trace = trace;
    run->with_qemu = with_qemu;
    if (trace) {
        char text[512];

        scenario_describe(&run->scenario, text, sizeof(text));
        sim_trace(&run->sim, "image: %s", text);
    }
    make_images(run);
    for (unsigned i = 0; i < run->scenario.generations && run->sim.failure[0] == '\0'; i++)
        serve_once(run, i, i + 1 == run->scenario.generations);
    tear_down(run);
    return run->sim.failure[0] == '\0';
}
