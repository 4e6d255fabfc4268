// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/disk.h"

#include <stdlib.h>

#include "tests/sim/file_sim.h"

const char *const disk_kind_names[] = {"read",  "write",    "barrier",  "zero",
                                       "punch", "allocate", "truncate", "extents"};

// ---- Applying changes

// The sectors of an entry that take effect.
struct selection {
    uint64_t seeds[2]; // each selects half of the sectors; 0: all
    bool content;      // false: none at all
    bool size;         // whether the file grows
};

static bool sector_selected(const struct selection *s, uint64_t sector)
{
    for (int i = 0; i < 2; i++) {
        if (s->seeds[i] && !(rng_mix(s->seeds[i] ^ sector) & 1))
            return false;
    }
    return true;
}

static void apply_sectors(struct memory *m, const struct sim_entry *entry,
                          const struct selection *s)
{
    uint64_t end = entry->offset + entry->length;

    for (uint64_t at = entry->offset; at < end;) {
        uint64_t next = (at / SIM_SECTOR + 1) * SIM_SECTOR;

        if (next > end || (!s->seeds[0] && !s->seeds[1]))
            next = end;
        if (sector_selected(s, at / SIM_SECTOR)) {
            if (entry->bytes)
                memory_write(m, entry->bytes + (at - entry->offset), at, (size_t)(next - at));
            else
                memory_zero(m, at, next - at);
        }
        at = next;
    }
}

static void apply(struct memory *m, const struct sim_entry *entry, const struct selection *s)
{
    uint64_t end = entry->offset + entry->length;

    switch (entry->kind) {
    case FILE_TRUNCATE:
        if (s->content && (s->size || entry->offset < m->size))
            memory_resize(m, entry->offset);
        return;
    case FILE_WRITE:
    case FILE_ZERO:
    case FILE_ALLOCATE:
        if (s->size && end > m->size)
            memory_resize(m, end);
        break;
    default:
        break;
    }
    if (s->content && entry->kind != FILE_ALLOCATE)
        apply_sectors(m, entry, s);
}

void disk_apply(struct sim_disk *disk, struct sim_entry *entry)
{
    apply(&disk->live, entry,
          &(struct selection){.seeds = {entry->partial_seed}, .content = true, .size = true});
    TAILQ_INSERT_TAIL(&disk->log, entry, link);
}

static void entry_free(struct sim_entry *entry)
{
    if (entry)
        free(entry->bytes);
    free(entry);
}

// Applies the oldest entries of the log that are durable: they need no decision any more.
static void fold_durable(struct sim_disk *disk)
{
    struct sim_entry *entry;

    while ((entry = TAILQ_FIRST(&disk->log)) != NULL && entry->durable) {
        apply(&disk->durable, entry,
              &(struct selection){.seeds = {entry->partial_seed}, .content = true, .size = true});
        TAILQ_REMOVE(&disk->log, entry, link);
        entry_free(entry);
    }
}

void disk_barrier(struct sim_disk *disk, uint64_t covers, bool success)
{
    struct sim_entry *entry;

    TAILQ_FOREACH (entry, &disk->log, link) {
        if (entry->reported_at == 0 || entry->reported_at > covers || entry->lost)
            continue;
        if (success)
            entry->durable = true;
        else
            entry->lost = !entry->durable;
    }
    fold_durable(disk);
}

void disk_in_flight(struct sim_disk *disk, struct sim_entry *entry, struct rng *rng)
{
    struct sim_entry *last = TAILQ_LAST(&disk->log, sim_entry_list);

    // Requests in flight come in any order among themselves, and after all that completed before.
    entry->in_flight = true;
    if (last && last->in_flight && rng_percent(rng, 50))
        TAILQ_INSERT_BEFORE(last, entry, link);
    else
        TAILQ_INSERT_TAIL(&disk->log, entry, link);
}

// ---- Disks and power cuts

void sim_disk_init(struct sim_disk *disk)
{
    *disk = (struct sim_disk){.limit = UINT64_MAX};
    memory_init(&disk->live);
    memory_init(&disk->durable);
    TAILQ_INIT(&disk->log);
}

static void clear_log(struct sim_disk *disk)
{
    struct sim_entry *entry;

    while ((entry = TAILQ_FIRST(&disk->log)) != NULL) {
        TAILQ_REMOVE(&disk->log, entry, link);
        entry_free(entry);
    }
}

void sim_disk_free(struct sim_disk *disk)
{
    clear_log(disk);
    memory_free(&disk->live);
    memory_free(&disk->durable);
}

// The fate of the changes that no barrier covers. A run that keeps or drops nearly all of them
// finds other faults than a run that throws a coin for each.
struct fate {
    unsigned keep;       // per cent of those from late on
    unsigned keep_early; // of those before
    uint64_t late;
    unsigned tear; // of those that are kept
    // Of those that are kept: content without size, or size without content.
    unsigned split;
    bool no_growth;  // the file is as short as it was
    uint64_t single; // the one change with the opposite fate
};

static struct fate choose_fate(struct rng *rng, uint64_t undecided)
{
    static const unsigned keeps[] = {0, 0, 10, 50, 50, 90, 100, 100};
    struct fate fate = {.keep = keeps[rng_below(rng, 8)], .single = UINT64_MAX};

    fate.tear = rng_percent(rng, 50) ? 0 : 25;
    fate.split = rng_percent(rng, 70) ? 0 : 25;
    fate.no_growth = rng_percent(rng, 12);
    if (undecided > 0 && rng_percent(rng, 40)) {
        // Keeps late changes without the earlier ones that they rely on: tables without data.
        fate.keep = 100;
        fate.keep_early = rng_percent(rng, 70) ? 0 : 50;
        fate.late = undecided - rng_scaled(rng, undecided);
    } else if (undecided > 0 && rng_percent(rng, 50)) {
        fate.single = rng_below(rng, undecided);
    }
    return fate;
}

static struct selection draw(const struct fate *fate, uint64_t number, struct rng *rng)
{
    bool keep = rng_percent(rng, number < fate->late ? fate->keep_early : fate->keep);
    struct selection s = {0};

    if (number == fate->single)
        keep = fate->keep < 50;
    s.content = s.size = keep;
    uint64_t seed = rng_next(rng) | 1;
    if (keep && rng_percent(rng, fate->tear))
        s.seeds[1] = seed;
    if (keep && rng_percent(rng, fate->split))
        *(seed & 2 ? &s.size : &s.content) = false;
    s.size = s.size && !fate->no_growth;
    return s;
}

void sim_disk_cut(const struct sim *sim, const struct sim_disk *disk, struct rng *rng,
                  struct memory *out)
{
    const struct sim_entry *entry;
    uint64_t undecided = 0, number = 0;

    TAILQ_FOREACH (entry, &disk->log, link)
        undecided += !entry->durable;
    struct fate fate = choose_fate(rng, undecided);

    memory_copy(out, &disk->durable);
    TAILQ_FOREACH (entry, &disk->log, link) {
        struct selection s = {.content = true, .size = true};

        if (!entry->durable)
            s = draw(&fate, number++, rng);
        s.seeds[0] = entry->partial_seed;
        sim_trace(sim, "  cut: %s %llu+%llu %s%s%s%s", entry->label,
                  (unsigned long long)entry->offset, (unsigned long long)entry->length,
                  entry->durable ? "durable"
                  : s.content    ? "kept"
                                 : "dropped",
                  s.seeds[1] ? ", torn" : "", s.content == s.size ? "" : ", size apart",
                  entry->in_flight ? " (in flight)" : "");
        apply(out, entry, &s);
    }
}

void sim_disk_restart(struct sim_disk *disk, struct memory *state)
{
    clear_log(disk);
    memory_free(&disk->live);
    memory_free(&disk->durable);
    disk->live = *state;
    memory_copy(&disk->durable, &disk->live);
    memory_init(state);
}
