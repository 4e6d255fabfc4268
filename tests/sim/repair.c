// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/repair.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/offline/check.h"
#include "tests/sim/damage.h"
#include "tests/sim/judge.h"

// Most attempts that are cut short or fail.
#define ATTEMPTS_MAX 3

struct repair {
    struct run *run;
    struct rng *rng;
    struct memory *before; // the content is compared with this
    struct sim sim;        // a machine of its own
    struct sim_disk disk;
    bool damaged;
};

// ---- Judging what an attempt leaves

static void compare_cluster(struct repair *r, const struct reader *before,
                            const struct reader *after, uint64_t cluster, unsigned char *bytes)
{
    unsigned char *other = bytes + before->cluster_size;

    for (int i = -1; i < (int)before->snapshot_count; i++) {
        reader_cluster(before, i < 0 ? &before->active : &before->snapshots[i], cluster, bytes);
        reader_cluster(after, i < 0 ? &after->active : &after->snapshots[i], cluster, other);
        if (memcmp(bytes, other, before->cluster_size) != 0)
            sim_fail(&r->run->sim, "repair changed guest cluster %llu",
                     (unsigned long long)cluster);
    }
}

static void compare(struct repair *r, const struct reader *before, const struct reader *after)
{
    const struct forge_recipe *image = &r->run->scenario.image;
    unsigned char *bytes = malloc(2 * before->cluster_size);

    if (!bytes)
        abort();
    for (unsigned i = 0; i < image->zone_count; i++) {
        uint64_t first = image->zones[i].offset >> before->cluster_bits;
        uint64_t end =
            (image->zones[i].offset + image->zones[i].length - 1) >> before->cluster_bits;

        for (uint64_t c = first; c <= end && r->run->sim.failure[0] == '\0'; c++)
            compare_cluster(r, before, after, c, bytes);
    }
    free(bytes);
}

// done: the attempt has ended well.
static void judge(struct repair *r, const struct memory *state, enum check_repair mode, bool done)
{
    struct reader_backing backing = r->run->pristine_reader.backing;
    struct sim *sim = &r->run->sim;
    struct reader before, after;
    struct judge_result result;
    char text[READER_TEXT];
    bool all = done && mode == CHECK_REPAIR_ALL;

    if (!reader_open(&before, r->before, backing, text) ||
        !reader_open(&after, state, backing, text)) {
        sim_fail(sim, "after repair: %s", text);
        return;
    }
    compare(r, &before, &after);
    judge_flag_order(&before, &after, &result);
    if (result.corruptions > 0)
        sim_fail(sim, "after half a repair: %s", result.text);
    judge_tables(&after, all, &result);
    // Damage is wrong until it is repaired.
    if (result.corruptions > 0 && (all || !r->damaged))
        sim_fail(sim, "%s: %s", all ? "after -r all" : "after half a repair", result.text);
    if (all && result.leaks > 0)
        sim_fail(sim, "after -r all %llu clusters leak", (unsigned long long)result.leaks);
    if (done && !r->damaged && result.leaks_in_file > 0)
        sim_fail(sim, "after -r leaks %llu clusters leak",
                 (unsigned long long)result.leaks_in_file);
}

// ---- Attempts

static int check(struct repair *r, enum check_repair mode, struct check_result *result)
{
    struct check_options options = {.repair = mode};
    struct file *file = file_sim_open(&r->sim, &r->disk, "image", mode == CHECK_REPORT);
    struct error err;
    int ret = check_image(file, &options, result, &err);

    sim_trace(&r->sim, "check ends: %s",
              ret < 0                                        ? err.text
              : result->corruptions > 0 || result->leaks > 0 ? "something is wrong"
                                                             : "all is well");
    file_close(file);
    if (ret < 0 && !r->sim.dead && r->sim.faults_hit == 0)
        sim_fail(&r->run->sim, "check: %s", err.text);
    return ret;
}

// The power goes, if it has not yet, and the disk comes back in some state.
static void restart(struct repair *r, enum check_repair mode, bool done)
{
    struct memory state;

    sim_power_off(&r->sim);
    sim_disk_cut(&r->sim, &r->disk, r->rng, &state);
    r->run->states++;
    judge(r, &state, mode, done);
    sim_disk_restart(&r->disk, &state);
    r->disk.limit = UINT64_MAX;
}

static void draw_disturbance(struct repair *r)
{
    struct sim *sim = &r->sim;

    sim->delays = SIM_DELAYS_SPREAD;
    if (rng_percent(r->rng, 40))
        sim->cut_barrier = rng_scaled(r->rng, 8);
    else
        sim->cut_at = rng_scaled(r->rng, 200);
    if (rng_percent(r->rng, 15))
        r->disk.limit = r->disk.live.size;
    if (rng_percent(r->rng, 15)) {
        sim->fault_count = 1;
        sim->faults[0] = (struct sim_fault){.class = (enum sim_class)rng_below(r->rng, SIM_CLASSES),
                                            .first = rng_scaled(r->rng, 32) - 1,
                                            .count = 1,
                                            .error = -EIO};
    }
}

static enum check_repair draw_mode(struct rng *rng)
{
    return rng_percent(rng, 30) ? CHECK_REPAIR_LEAKS : CHECK_REPAIR_ALL;
}

static void disturbed(struct repair *r)
{
    enum check_repair mode = draw_mode(r->rng);
    struct check_result result;

    sim_power_on(&r->sim);
    draw_disturbance(r);
    sim_trace(&r->sim, "repair %s, disturbed", mode == CHECK_REPAIR_ALL ? "all" : "leaks");
    // An attempt that nothing disturbed must repair everything.
    bool done = check(r, mode, &result) == 0 && !r->sim.dead;
    restart(r, mode, done);
}

static enum repair_outcome undisturbed(struct repair *r)
{
    enum check_repair mode = r->damaged ? CHECK_REPAIR_ALL : draw_mode(r->rng);
    struct check_result result;

    sim_power_on(&r->sim);
    sim_trace(&r->sim, "repair %s", mode == CHECK_REPAIR_ALL ? "all" : "leaks");
    if (check(r, mode, &result) < 0) {
        if (!r->disk.device)
            sim_fail(&r->run->sim, "a repair that nothing disturbed fails");
        return REPAIR_HALF;
    }
    if (result.leaks > 0 || (mode == CHECK_REPAIR_ALL && result.corruptions > 0))
        sim_fail(&r->run->sim, "repair leaves %llu corruptions and %llu leaks",
                 (unsigned long long)result.corruptions, (unsigned long long)result.leaks);
    restart(r, mode, true);
    sim_power_on(&r->sim);
    if (check(r, CHECK_REPORT, &result) == 0 &&
        (result.leaks > 0 || (mode == CHECK_REPAIR_ALL && result.corruptions > 0)))
        sim_fail(&r->run->sim, "check after repair finds %llu corruptions and %llu leaks",
                 (unsigned long long)result.corruptions, (unsigned long long)result.leaks);
    return mode == CHECK_REPAIR_ALL ? REPAIR_ALL : REPAIR_LEAKS;
}

static void spoil(struct repair *r)
{
    struct reader reader;
    char text[READER_TEXT];

    if (!reader_open(&reader, r->before, r->run->pristine_reader.backing, text))
        return;
    r->damaged = true;
    damage_refcounts(r->before, &reader, r->rng);
}

enum repair_outcome repair_run(struct run *run, struct memory *state, bool damage, struct rng *rng)
{
    struct repair r = {.run = run, .rng = rng, .before = state};
    enum repair_outcome outcome = REPAIR_HALF;
    struct memory whole, copy;

    memory_copy(&whole, state);
    sim_init(&r.sim, rng_stream(rng_next(rng), 0));
    r.sim.trace = run->sim.trace;
    sim_disk_init(&r.disk);
    r.disk.device = run->disk.device;
    if (damage)
        spoil(&r);
    memory_copy(&copy, state);
    sim_disk_restart(&r.disk, &copy);
    for (uint64_t i = rng_below(rng, ATTEMPTS_MAX + 1); i > 0 && run->sim.failure[0] == '\0'; i--)
        disturbed(&r);
    if (run->sim.failure[0] == '\0' && (damage || rng_percent(rng, 60)))
        outcome = undisturbed(&r);
    // A full device has no room for new refcounts: the damage stays, and the state is not used.
    bool useless = damage && outcome != REPAIR_ALL;
    memory_free(state);
    memory_copy(state, useless ? &whole : &r.disk.live);
    memory_free(&whole);
    sim_disk_free(&r.disk);
    return outcome;
}
