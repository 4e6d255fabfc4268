// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/generation.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/image.h"
#include "tests/sim/pattern.h"

#define EXTENTS_MAX 16

// A request of a guest.
struct guest_op {
    struct op op; // first
    struct generation *generation;
    unsigned number;
    size_t change; // of the model
    bool changes;
    uint64_t began;
    struct extent extents[EXTENTS_MAX];
};

struct generation {
    struct run *run;
    const struct scenario_generation *plan;
    struct image *image;
    unsigned next; // op to start
    unsigned in_flight;
    unsigned cleaning;     // clean points under way
    bool wants_clean;      // one is to be asked for as soon as nothing is in flight
    unsigned clean_before; // the op before which one was asked for last, plus one
    uint64_t next_time;    // when the next op is started
};

static const char *const op_names[] = {"read",         "write", "discard",
                                       "write zeroes", "flush", "block status"};

// ---- The world around the engine

static int open_backing(void *context, const char *path, struct file **out, struct error *err)
{
    struct run *run = context;

    (void)err;
    *out = file_sim_open(&run->sim, &run->backing_disk, path, true);
    return 0;
}

// What is said while nothing is wrong. Anything else is a complaint about an image that has no
// fault, since only whole images and those that a power cut left are served here.
static bool is_harmless(const char *line)
{
    static const char *const lines[] = {"': was not closed cleanly",
                                        "': recovery: done, 0 faults found",
                                        " % of the tables counted"};

    if (strstr(line, "fault") && !strstr(line, ", 0 faults"))
        return false;
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        if (strstr(line, lines[i]))
            return true;
    }
    return false;
}

static void take_log(void *context, const char *line)
{
    struct run *run = context;

    sim_trace(&run->sim, "log: %s", line);
    if (run->sim.faults_hit == 0 && !run->sim.dead && !is_harmless(line))
        sim_fail(&run->sim, "the engine says: %s", line);
}

// ---- Guests

static bool may_fail(const struct generation *gen, const struct op *op)
{
    const struct sim *sim = &gen->run->sim;

    switch (op->result) {
    case -ENOTSUP:
        return (op->flags & OP_FAST_ZERO) != 0;
    case -EPERM:
        return gen->plan->read_only;
    case -EIO:
    case -ENOSPC:
        return sim->faults_hit > 0;
    default:
        return false;
    }
}

// Zeros that the engine told of instead of filling the buffer.
static bool fill_holes(struct generation *gen, struct op *op)
{
    uint64_t at = 0;

    for (size_t i = 0; i < op->extent_count && at < op->length; i++) {
        if (op->extents[i].zero)
            memset((char *)op->buf + at, 0, op->extents[i].length);
        at += op->extents[i].length;
    }
    if (at != op->length)
        sim_fail(&gen->run->sim, "the extents of a read of %llu bytes cover %llu",
                 (unsigned long long)op->length, (unsigned long long)at);
    return at == op->length;
}

static void check_status(struct guest_op *g, char *text)
{
    struct op *op = &g->op;
    struct run *run = g->generation->run;
    uint64_t at = op->offset;

    if (op->extent_count == 0 && op->length > 0)
        sim_fail(&run->sim, "block status has no extents");
    for (size_t i = 0; i < op->extent_count; i++) {
        uint64_t left = op->offset + op->length - at;
        uint64_t length = op->extents[i].length < left ? op->extents[i].length : left;
        unsigned char *zeros = calloc(1, length + 1);

        if (!zeros)
            abort();
        if (op->extents[i].zero &&
            !model_check_read(&run->model, g->began, at, length, zeros, text))
            sim_fail(&run->sim, "block status says zeros: %s", text);
        free(zeros);
        at += length;
    }
}

static void check_result(struct guest_op *g)
{
    struct op *op = &g->op;
    struct run *run = g->generation->run;
    char text[MODEL_TEXT];

    if (op->result < 0 && !may_fail(g->generation, op)) {
        sim_fail(&run->sim, "op %u (%s) ended with %s, and nothing had failed", g->number,
                 op_names[op->kind], strerror(-op->result));
    } else if (op->result < 0) {
        return;
    } else if (op->kind == OP_READ) {
        if ((op->flags & OP_REPORT_HOLES) && !fill_holes(g->generation, op))
            return;
        if (!model_check_read(&run->model, g->began, op->offset, op->length, op->buf, text))
            sim_fail(&run->sim, "read: %s", text);
    } else if (op->kind == OP_BLOCK_STATUS) {
        check_status(g, text);
    }
}

static void op_ended(struct op *op)
{
    struct guest_op *g = (struct guest_op *)op;
    struct generation *gen = g->generation;
    struct run *run = gen->run;

    gen->in_flight--;
    // After the power cut nobody hears of it.
    if (!run->sim.dead) {
        sim_trace(&run->sim, "op %u ends: %s %s", g->number, op_names[op->kind],
                  op->result < 0 ? strerror(-op->result) : "");
        if (g->changes)
            model_end(&run->model, g->change, op->result == 0, (op->flags & OP_FUA) != 0);
        if (op->kind == OP_FLUSH && op->result == 0)
            model_flushed(&run->model, g->began);
        check_result(g);
    }
    free(op->buf);
    free(g);
}

static void begin_change(struct guest_op *g, const struct scenario_op *plan)
{
    struct run *run = g->generation->run;
    struct op *op = &g->op;
    uint32_t value = PATTERN_ZEROS;

    if (op->kind == OP_WRITE && !plan->zeros)
        value = ++run->last_value;
    if (op->kind == OP_WRITE)
        pattern_fill(op->buf, value, op->offset, op->length);
    // What a discard leaves of its range is not said anywhere.
    g->change = model_begin(&run->model, value, op->offset, op->length, op->kind == OP_DISCARD);
    g->changes = true;
    sim_trace(&run->sim, "  value %u", value);
}

static void start_op(struct generation *gen, const struct scenario_op *plan)
{
    struct run *run = gen->run;
    struct guest_op *g = calloc(1, sizeof(*g));
    struct op *op = &g->op;

    if (!g)
        abort();
    g->generation = gen;
    g->number = SCENARIO_OP_NUMBER(gen->plan->number, gen->next);
    op->kind = plan->kind;
    op->flags = plan->flags;
    if (op->kind != OP_FLUSH) {
        op->offset = plan->offset;
        op->length = plan->length;
    }
    op->done = op_ended;
    op->extents = g->extents;
    op->max_extents = EXTENTS_MAX;
    if (op->kind == OP_READ || op->kind == OP_WRITE) {
        op->buf = malloc(op->length + 1);
        if (!op->buf)
            abort();
        memset(op->buf, 0x5a, op->length);
    }
    sim_trace(&run->sim, "op %u: %s%s%s%s %llu+%llu", g->number, op_names[op->kind],
              op->flags & OP_FUA ? " fua" : "", op->flags & OP_NO_HOLE ? " no-hole" : "",
              op->flags & OP_FAST_ZERO ? " fast" : "", (unsigned long long)op->offset,
              (unsigned long long)op->length);
    if (op->kind == OP_WRITE || op->kind == OP_DISCARD || op->kind == OP_WRITE_ZEROES)
        begin_change(g, plan);
    g->began = model_now(&run->model);
    gen->in_flight++;
    run->ops++;
    op_start(gen->image, op);
}

static void clean_ended(void *context, int result)
{
    struct generation *gen = context;

    gen->cleaning--;
    sim_trace(&gen->run->sim, "clean point ends: %s", result < 0 ? strerror(-result) : "clean");
    if (result < 0 && result != -EBUSY && !gen->run->sim.dead && gen->run->sim.faults_hit == 0)
        sim_fail(&gen->run->sim, "a clean point ended with %s, and nothing had failed",
                 strerror(-result));
}

static void start_clean(struct generation *gen)
{
    gen->wants_clean = false;
    // The next op comes in its way, or after it.
    gen->next_time = gen->run->sim.now + (gen->next % 2 ? 0 : 3000);
    if (gen->cleaning > 0 || gen->plan->read_only || !image_needs_clean(gen->image))
        return;
    sim_trace(&gen->run->sim, "clean point");
    gen->cleaning++;
    image_clean(gen->image, clean_ended, gen);
}

static void start_next(struct generation *gen)
{
    const struct scenario *s = &gen->run->scenario;
    const bool *skip = s->limits.skip;
    struct scenario_op plan;

    scenario_draw_op(s, gen->plan, gen->next, &plan);
    if (plan.clean_before && gen->clean_before != gen->next + 1) {
        gen->clean_before = gen->next + 1;
        gen->wants_clean = true;
        return;
    }
    gen->next_time = gen->run->sim.now + plan.pause;
    if (plan.tick_before)
        image_tick(gen->image);
    if (!skip || !skip[SCENARIO_OP_NUMBER(gen->plan->number, gen->next)])
        start_op(gen, &plan);
    gen->next++;
}

// ---- The course of events

// One more thing happens. False: nothing is left to happen.
static bool advance(struct generation *gen)
{
    struct sim *sim = &gen->run->sim;
    bool may_start = !sim->dead && gen->next < gen->plan->ops && gen->in_flight < gen->plan->depth;

    if (gen->wants_clean && gen->in_flight == 0 && !sim->dead)
        start_clean(gen);
    if (may_start && !gen->wants_clean &&
        (gen->next_time <= sim->now || sim_next_due(sim) >= gen->next_time)) {
        if (gen->next_time > sim->now)
            sim->now = gen->next_time;
        start_next(gen);
        return true;
    }
    if (sim_quiet(sim))
        return runq_run(&sim->runq);
    // What completes together is seen together, now and then.
    do
        sim_complete_next(sim);
    while (sim_next_due(sim) <= sim->now && rng_percent(&sim->rng, 80));
    return true;
}

static void serve(struct generation *gen)
{
    struct sim *sim = &gen->run->sim;

    for (;;) {
        if (sim->failure[0] != '\0')
            sim_power_off(sim);
        if (runq_run(&sim->runq) && rng_percent(&sim->rng, 90))
            continue;
        if (!advance(gen))
            break;
    }
}

// Whether everything that was started has ended.
static bool check_ended(struct generation *gen)
{
    struct sim *sim = &gen->run->sim;

    if (gen->in_flight == 0 && gen->cleaning == 0)
        return true;
    sim_fail(sim, "%u ops and %u clean points never end: nothing is in flight", gen->in_flight,
             gen->cleaning);
    return false;
}

static bool finish(struct generation *gen)
{
    struct sim *sim = &gen->run->sim;
    struct error err = {{0}};

    if (sim->dead || !gen->plan->finish || gen->plan->read_only)
        return false;
    sim_trace(sim, "finish");
    int result = image_finish(gen->image, &err);
    sim_trace(sim, "finished: %s", result < 0 ? err.text : "clean");
    if (result < 0 && !sim->dead && sim->faults_hit == 0)
        sim_fail(sim, "finishing failed, and nothing else had: %s", err.text);
    return result == 0 && !sim->dead;
}

static bool open_image(struct generation *gen)
{
    struct run *run = gen->run;
    const struct scenario *s = &run->scenario;
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2,
                                    .read_only = gen->plan->read_only,
                                    .unmap = s->unmap,
                                    .lazy_refcounts = (enum lazy_refcounts)s->lazy,
                                    .cache_bytes = s->cache_bytes};
    struct image_host host = {.context = run, .open_backing = open_backing, .log = take_log};
    struct file *file = file_sim_open(&run->sim, &run->disk, "image", gen->plan->read_only);
    struct error err;
    int result = image_open(&gen->image, file, &options, &host, &err);

    if (result == 0)
        return true;
    file_close(file);
    sim_trace(&run->sim, "cannot open: %s", err.text);
    if (!run->sim.dead && run->sim.faults_hit == 0)
        sim_fail(&run->sim, "cannot open: %s", err.text);
    return false;
}

bool generation_run(struct run *run, const struct scenario_generation *g)
{
    struct generation gen = {.run = run, .plan = g};
    struct sim *sim = &run->sim;
    bool clean = false;

    sim_power_on(sim);
    sim->delays = g->delays;
    sim->cut_at = g->cut_at;
    sim->cut_barrier = g->cut_barrier;
    run->disk.limit = g->room == UINT64_MAX ? UINT64_MAX : run->disk.live.size + g->room;
    sim->fault_count = g->fault_count;
    memcpy(sim->faults, g->faults, sizeof(sim->faults));
    sim_trace(sim, "generation %u: %u ops, %u at once%s%s", g->number, g->ops, g->depth,
              g->read_only ? ", read-only" : "", g->fault_count ? ", with faults" : "");
    if (open_image(&gen)) {
        serve(&gen);
        if (check_ended(&gen)) {
            clean = finish(&gen);
            if (!clean)
                sim_power_off(sim);
            serve(&gen);
            image_close(gen.image);
        }
    }
    return clean;
}
