// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/generation.h"

#include <string.h>

#include "tests/sim/guest.h"
#include "tests/sim/heap.h"
#include "tests/sim/service.h"

TAILQ_HEAD(guest_list, guest);

struct generation {
    struct run *run;
    const struct scenario_generation *plan;
    struct service service;
    struct guest *guests[SCENARIO_GUESTS_MAX];
    struct guest_list left; // have left, with work still under way
    unsigned connections;   // so far
    bool immediate;         // bytes pass at once
    bool stopped;           // the guests were told that the server stops

    unsigned next; // op to start
    bool drawn;    // upcoming is that op
    struct scenario_op upcoming;
    // A clean point is to come as soon as no request is waiting.
    bool wants_clean;
    // One plus the number of the op before which a clean point was last asked for.
    unsigned clean_before;
    uint64_t next_time; // when the next op is started
};

// ---- Guests

static void connect_guest(struct generation *gen, unsigned i)
{
    gen->guests[i] = guest_new(gen->run, &gen->service.clients, gen->plan, gen->connections++);
}

static void dismiss(struct generation *gen, unsigned i, enum scenario_leave how)
{
    guest_leave(gen->guests[i], how);
    TAILQ_INSERT_TAIL(&gen->left, gen->guests[i], link);
    gen->guests[i] = NULL;
}

static void dismiss_all(struct generation *gen, enum scenario_leave how)
{
    for (unsigned i = 0; i < gen->plan->guests; i++) {
        if (gen->guests[i])
            dismiss(gen, i, how);
    }
}

// Cuts all guests off.
static void cut_off(struct generation *gen)
{
    struct guest *guest;

    dismiss_all(gen, LEAVE_CUT_OFF);
    TAILQ_FOREACH (guest, &gen->left, link)
        guest_leave(guest, LEAVE_CUT_OFF);
}

static void free_left(struct generation *gen)
{
    struct guest *guest = TAILQ_FIRST(&gen->left);

    while (guest) {
        struct guest *next = TAILQ_NEXT(guest, link);

        if (guest_over(guest)) {
            TAILQ_REMOVE(&gen->left, guest, link);
            guest_free(guest);
        }
        guest = next;
    }
}

// Replaces a guest that the server dropped for want of memory.
static void replace_dropped(struct generation *gen)
{
    for (unsigned i = 0; i < gen->plan->guests; i++) {
        if (!gen->guests[i] || !gen->guests[i]->gone || gen->run->sim.dead)
            continue;
        dismiss(gen, i, LEAVE_CUT_OFF);
        if (!gen->stopped)
            connect_guest(gen, i);
    }
}

// Returns the number of unanswered requests of all guests.
static unsigned waiting(const struct generation *gen)
{
    const struct guest *guest;
    unsigned count = 0;

    for (unsigned i = 0; i < gen->plan->guests; i++)
        count += gen->guests[i] ? gen->guests[i]->waiting : 0;
    TAILQ_FOREACH (guest, &gen->left, link)
        count += guest->waiting;
    return count;
}

// Passes bytes on all connections, or on some of them. Returns whether any passed.
static bool pass(struct generation *gen, bool eager)
{
    struct rng *rng = &gen->run->sim.rng;
    struct guest *guest;
    bool passed = false;

    for (unsigned i = 0; i < gen->plan->guests; i++) {
        if (gen->guests[i] && (eager || rng_percent(rng, 50)))
            passed |= guest_pass(gen->guests[i], eager);
    }
    TAILQ_FOREACH (guest, &gen->left, link)
        passed |= guest_pass(guest, eager);
    return passed;
}

// ---- What is asked for

static void stop(struct generation *gen)
{
    struct guest *guest;

    sim_trace(&gen->run->sim, "stop");
    gen->stopped = true;
    for (unsigned i = 0; i < gen->plan->guests; i++) {
        if (gen->guests[i])
            guest_stop(gen->guests[i]);
    }
    TAILQ_FOREACH (guest, &gen->left, link)
        guest_stop(guest);
}

static void start_clean(struct generation *gen)
{
    gen->wants_clean = false;
    // The next op comes while the last one runs, or after it.
    static const uint64_t pauses[] = {0, 3000, 60, 200};
    gen->next_time = gen->run->sim.now + pauses[gen->next % 4];
    if (!gen->service.cleaning && !gen->plan->read_only)
        service_idle(&gen->service);
}

static void start_next(struct generation *gen)
{
    const struct scenario *s = &gen->run->scenario;
    const struct scenario_op *op = &gen->upcoming;
    unsigned number = SCENARIO_OP_NUMBER(gen->plan->number, gen->next);

    if (op->clean_before && gen->clean_before != gen->next + 1) {
        gen->clean_before = gen->next + 1;
        gen->wants_clean = true;
        return;
    }
    gen->next_time = gen->run->sim.now + op->pause;
    if (gen->plan->finish && !gen->stopped && gen->next >= gen->plan->stop_at)
        stop(gen);
    if (op->tick_before)
        service_tick(&gen->service);
    if (op->leave != LEAVE_NOT && !gen->stopped) {
        dismiss(gen, op->guest, op->leave);
        connect_guest(gen, op->guest);
    } else if ((!s->limits.skip || !s->limits.skip[number]) && gen->guests[op->guest] &&
               guest_ready(gen->guests[op->guest])) {
        guest_start(gen->guests[op->guest], op, number);
    }
    gen->next++;
    gen->drawn = false;
}

// ---- The course of events

static bool may_start(struct generation *gen)
{
    struct sim *sim = &gen->run->sim;

    if (sim->dead || gen->wants_clean || gen->next >= gen->plan->ops ||
        waiting(gen) >= gen->plan->depth)
        return false;
    if (gen->next_time > sim->now && sim_next_due(sim) < gen->next_time)
        return false;
    if (!gen->drawn)
        scenario_draw_op(&gen->run->scenario, gen->plan, gen->next, &gen->upcoming);
    gen->drawn = true;
    // After the server has stopped a guest may wait for ever to be let in.
    return gen->stopped || guest_ready(gen->guests[gen->upcoming.guest]);
}

// Lets one more thing happen. Returns false when nothing is left to happen.
static bool advance(struct generation *gen)
{
    struct sim *sim = &gen->run->sim;

    service_check_clean(&gen->service);
    if (gen->immediate ? pass(gen, true) : rng_percent(&sim->rng, 60) && pass(gen, false))
        return true;
    if (gen->wants_clean && waiting(gen) == 0 && !sim->dead)
        start_clean(gen);
    if (may_start(gen)) {
        if (gen->next_time > sim->now)
            sim->now = gen->next_time;
        start_next(gen);
        return true;
    }
    if (sim_quiet(sim)) {
        // A request that waited for memory may go on when no bytes pass.
        return sim_run(sim) || pass(gen, true) || !runq_empty(&sim->runq) || !sim_quiet(sim);
    }
    // Several completions are sometimes seen together.
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
        if (sim->dead)
            cut_off(gen);
        free_left(gen);
        replace_dropped(gen);
        if (sim_run(sim) && rng_percent(&sim->rng, 90))
            continue;
        if (!advance(gen))
            break;
    }
    service_check_clean(&gen->service);
    free_left(gen);
}

// Checks that everything that was started has ended.
static bool check_ended(struct generation *gen)
{
    struct sim *sim = &gen->run->sim;

    if (waiting(gen) == 0 && TAILQ_EMPTY(&gen->left) && !gen->service.cleaning)
        return true;
    sim_fail(sim, "%u requests are never answered%s%s: nothing is in flight", waiting(gen),
             TAILQ_EMPTY(&gen->left) ? "" : ", a guest that left is held",
             gen->service.cleaning ? ", a clean point never ends" : "");
    return false;
}

// Removes all guests and finishes the image. Returns true when it is clean.
static bool finish(struct generation *gen)
{
    struct sim *sim = &gen->run->sim;

    if (sim->dead || !gen->plan->finish || gen->plan->read_only)
        return false;
    if (!gen->stopped)
        stop(gen);
    dismiss_all(gen, LEAVE_DISCONNECT);
    serve(gen);
    return check_ended(gen) && !sim->dead && service_finish(&gen->service);
}

bool generation_run(struct run *run, const struct scenario_generation *g)
{
    struct generation gen = {.run = run, .plan = g, .immediate = g->portion == 0 && g->deaf == 0};
    struct sim *sim = &run->sim;
    bool clean = false;

    sim_power_on(sim);
    sim->delays = g->delays;
    sim->cut_at = g->cut_at;
    sim->cut_barrier = g->cut_barrier;
    run->disk.limit = g->room == UINT64_MAX ? UINT64_MAX : run->disk.live.size + g->room;
    sim->fault_count = g->fault_count;
    memcpy(sim->faults, g->faults, sizeof(sim->faults));
    sim_trace(sim, "generation %u: %u ops, %u at once, %u guests%s%s", g->number, g->ops, g->depth,
              g->guests, g->read_only ? ", read-only" : "", g->fault_count ? ", with faults" : "");
    heap_begin(g->heap_first, g->heap_count);
    if (!service_open(&gen.service, run, g))
        return false;
    TAILQ_INIT(&gen.left);
    for (unsigned i = 0; i < g->guests; i++)
        connect_guest(&gen, i);
    serve(&gen);
    if (check_ended(&gen)) {
        clean = finish(&gen);
        if (!clean)
            sim_power_off(sim);
        serve(&gen);
        service_close(&gen.service);
    }
    heap_begin(0, 0);
    return clean;
}
