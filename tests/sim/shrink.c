// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/shrink.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/sim/limit.h"
#include "tests/sim/run.h"

// Draws of times and cuts that an attempt tries: leaving an op out moves everything after it, and
// so hides most failures.
#define SALTS 60
// Seconds after which a scenario counts as failed, because it does not progress.
#define ATTEMPT_SECONDS 5

struct search {
    uint64_t seed;
    struct scenario_limits best;
    bool skip[SCENARIO_OP_NUMBERS]; // of best
    uint64_t attempts;
};

// Runs in a process of its own, for failures that are crashes.
static bool fails(struct search *search, const struct scenario_limits *limits)
{
    int status;

    search->attempts++;
    fflush(stdout);
    pid_t child = fork();
    if (child < 0)
        abort();
    if (child == 0) {
        struct run run = {0};

        // The trace at the end tells why the attempts died.
        if (!freopen("/dev/null", "w", stderr))
            _exit(0);
        limit_cpu(ATTEMPT_SECONDS);
        _exit(!run_scenario(&run, search->seed, limits, false, false));
    }
    if (waitpid(child, &status, 0) != child)
        abort();
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

// Returns true when the scenario still fails under these limits, with any salt; keeps them if so.
static bool attempt(struct search *search, struct scenario_limits limits)
{
    uint64_t first = limits.salt;

    for (uint64_t i = 0; i < SALTS; i++) {
        limits.salt = i == 0 ? first : i;
        if (!fails(search, &limits))
            continue;
        const bool *skip = limits.skip;

        search->best = limits;
        if (skip && skip != search->skip)
            memcpy(search->skip, skip, sizeof(search->skip));
        search->best.skip = skip ? search->skip : NULL;
        return true;
    }
    return false;
}

// ---- What can be left out

static void fewer_generations(struct search *search)
{
    struct scenario s;

    scenario_draw(&s, search->seed, &search->best);
    for (unsigned n = 1; n < s.generations; n++) {
        struct scenario_limits limits = search->best;

        limits.generations = n;
        if (attempt(search, limits))
            return;
    }
}

static void fewer_ops(struct search *search)
{
    unsigned ops = search->best.ops ? search->best.ops : SCENARIO_OPS_MAX;

    while (ops > 1) {
        struct scenario_limits limits = search->best;

        limits.ops = ops / 2;
        if (attempt(search, limits)) {
            ops /= 2;
            continue;
        }
        limits.ops = ops - 1;
        if (!attempt(search, limits))
            return;
        ops--;
    }
}

static void simpler(struct search *search)
{
    struct scenario_limits limits = search->best;

    limits.no_faults = true;
    attempt(search, limits);
    limits = search->best;
    limits.no_clean = true;
    attempt(search, limits);
    for (unsigned depth = 1; depth < 8; depth *= 2) {
        limits = search->best;
        limits.depth = depth;
        if (attempt(search, limits))
            return;
    }
}

// Leaves out groups of ops, smaller and smaller ones.
static void skip_ops(struct search *search)
{
    unsigned ops = search->best.ops ? search->best.ops : SCENARIO_OPS_MAX;
    unsigned generations =
        search->best.generations ? search->best.generations : SCENARIO_GENERATIONS_MAX;

    for (unsigned group = (ops + 1) / 2; group > 0; group /= 2) {
        for (unsigned g = 0; g < generations; g++) {
            for (unsigned i = 0; i < ops; i += group) {
                bool skip[SCENARIO_OP_NUMBERS];
                bool more = false;

                memcpy(skip, search->skip, sizeof(skip));
                for (unsigned k = i; k < i + group && k < ops; k++) {
                    more |= !skip[SCENARIO_OP_NUMBER(g, k)];
                    skip[SCENARIO_OP_NUMBER(g, k)] = true;
                }
                struct scenario_limits limits = search->best;
                limits.skip = skip;
                if (more)
                    attempt(search, limits);
            }
        }
    }
}

// ---- What comes out

static void print_skip(const struct search *search)
{
    const char *separator = " --skip ";

    for (unsigned i = 0; i < SCENARIO_OP_NUMBERS; i++) {
        unsigned end = i;

        while (end < SCENARIO_OP_NUMBERS && search->skip[end])
            end++;
        // Ops beyond the limit are not started anyway.
        if (end == i || (search->best.ops && i % SCENARIO_OPS_MAX >= search->best.ops))
            continue;
        printf(end > i + 1 ? "%s%u-%u" : "%s%u", separator, i, end - 1);
        separator = ",";
        i = end;
    }
}

static void print_command(const struct search *search)
{
    const struct scenario_limits *best = &search->best;

    printf("sim --seed %" PRIu64, search->seed);
    if (best->salt)
        printf(" --salt %" PRIu64, best->salt);
    if (best->generations)
        printf(" --generations %u", best->generations);
    if (best->ops)
        printf(" --ops %u", best->ops);
    if (best->depth)
        printf(" --depth %u", best->depth);
    if (best->no_faults)
        printf(" --no-faults");
    if (best->no_clean)
        printf(" --no-clean");
    if (best->skip)
        print_skip(search);
    printf(" --verbose\n");
}

int shrink(uint64_t seed, const struct scenario_limits *limits)
{
    struct search search = {.seed = seed, .best = *limits};

    if (limits->skip)
        memcpy(search.skip, limits->skip, sizeof(search.skip));
    if (!fails(&search, limits)) {
        printf("sim: seed %" PRIu64 " does not fail\n", seed);
        return 2;
    }
    fewer_generations(&search);
    simpler(&search);
    fewer_ops(&search);
    skip_ops(&search);
    fewer_ops(&search);
    printf("sim: after %" PRIu64 " attempts:\n", search.attempts);
    print_command(&search);

    struct run run = {0};
    run_scenario(&run, seed, &search.best, true, false);
    return 1;
}

const bool *shrink_parse_skip(const char *text)
{
    static bool skip[SCENARIO_OP_NUMBERS];

    while (*text != '\0') {
        char *end;
        unsigned long first = strtoul(text, &end, 10);
        unsigned long last = *end == '-' ? strtoul(end + 1, &end, 10) : first;

        for (; first <= last && first < SCENARIO_OP_NUMBERS; first++)
            skip[first] = true;
        text = *end == ',' ? end + 1 : "";
    }
    return skip;
}
