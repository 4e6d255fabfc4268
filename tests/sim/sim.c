// SPDX-License-Identifier: Apache-2.0
// sim.c: the simulator's command line.
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/memcheck.h"
#include "tests/sim/limit.h"
#include "tests/sim/run.h"
#include "tests/sim/shrink.h"

// Seconds after which a scenario counts as stuck; it usually takes milliseconds.
#define STUCK_SECONDS 60

static volatile uint64_t seed_now;

// Prints the seed before the program dies.
static void tell_seed(int number)
{
    char text[64];
    int length =
        snprintf(text, sizeof(text), "\nsim: signal %d in seed %" PRIu64 "\n", number, seed_now);

    if (write(STDERR_FILENO, text, (size_t)length) < 0)
        _exit(3);
    signal(number, SIG_DFL);
    raise(number);
}

struct options {
    uint64_t seed;
    uint64_t count; // 0: one, or as many as the time allows
    double minutes;
    bool fresh; // the first seed is drawn
    bool keep_going;
    bool shrink;
    bool verbose;
    unsigned qemu; // every so many scenarios; 0: never
    struct scenario_limits limits;
};

static const struct option long_options[] = {{"seed", required_argument, NULL, 's'},
                                             {"count", required_argument, NULL, 'c'},
                                             {"minutes", required_argument, NULL, 'm'},
                                             {"fresh", no_argument, NULL, 'f'},
                                             {"keep-going", no_argument, NULL, 'k'},
                                             {"shrink", no_argument, NULL, 'x'},
                                             {"verbose", no_argument, NULL, 'v'},
                                             {"qemu", optional_argument, NULL, 'q'},
                                             {"salt", required_argument, NULL, 'S'},
                                             {"generations", required_argument, NULL, 'g'},
                                             {"ops", required_argument, NULL, 'o'},
                                             {"depth", required_argument, NULL, 'd'},
                                             {"skip", required_argument, NULL, 'n'},
                                             {"no-faults", no_argument, NULL, 'F'},
                                             {"no-clean", no_argument, NULL, 'C'},
                                             {"help", no_argument, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

static const char usage[] =
    "sim [--seed N | --fresh] [--count N] [--minutes M] [--keep-going] [--qemu[=N]]\n"
    "sim --seed N --verbose          prints everything that happens\n"
    "sim --seed N --shrink           looks for a shorter trace that still fails\n"
    "    --salt N --generations N --ops N --depth N --skip LIST --no-faults --no-clean\n"
    "                                what is taken away from the seed, as --shrink prints it\n"
    "Runs scenarios from seed N on; docs/simulator.md tells more.\n";

static void parse(int argc, char **argv, struct options *o)
{
    int option;

    while ((option = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
        switch (option) {
        case 's':
            o->seed = strtoull(optarg, NULL, 0);
            break;
        case 'c':
            o->count = strtoull(optarg, NULL, 0);
            break;
        case 'm':
            o->minutes = strtod(optarg, NULL);
            break;
        case 'f':
            o->fresh = true;
            break;
        case 'k':
            o->keep_going = true;
            break;
        case 'x':
            o->shrink = true;
            break;
        case 'v':
            o->verbose = true;
            break;
        case 'q':
            o->qemu = optarg ? (unsigned)strtoul(optarg, NULL, 0) : 1;
            break;
        case 'S':
            o->limits.salt = strtoull(optarg, NULL, 0);
            break;
        case 'g':
            o->limits.generations = (unsigned)strtoul(optarg, NULL, 0);
            break;
        case 'o':
            o->limits.ops = (unsigned)strtoul(optarg, NULL, 0);
            break;
        case 'd':
            o->limits.depth = (unsigned)strtoul(optarg, NULL, 0);
            break;
        case 'n':
            o->limits.skip = shrink_parse_skip(optarg);
            break;
        case 'F':
            o->limits.no_faults = true;
            break;
        case 'C':
            o->limits.no_clean = true;
            break;
        case 'h':
            fputs(usage, stdout);
            exit(0);
        default:
            fputs(usage, stderr);
            exit(2);
        }
    }
}

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void tell_failure(const struct run *run, uint64_t seed)
{
    char text[512];

    scenario_describe(&run->scenario, text, sizeof(text));
    printf("seed %" PRIu64 " FAILED: %s\n  (%s)\n  sim --seed %" PRIu64 " --verbose, or --shrink\n",
           seed, run->sim.failure, text, seed);
    fflush(stdout);
}

// Returns the number of failed scenarios.
static uint64_t run_many(const struct options *o)
{
    double begin = seconds(), end = begin + o->minutes * 60;
    uint64_t failed = 0, done = 0, ops = 0, states = 0, generations = 0;
    uint64_t count = o->count ? o->count : o->minutes > 0 ? UINT64_MAX : 1;

    for (; done < count && (o->minutes <= 0 || seconds() < end); done++) {
        struct run run = {0};

        seed_now = o->seed + done;
        limit_cpu(STUCK_SECONDS);
        bool qemu = o->qemu > 0 && done % o->qemu == 0;
        unsigned complaints = memcheck_errors();
        bool good = run_scenario(&run, seed_now, &o->limits, o->verbose, qemu);
        if (memcheck_errors() > complaints) {
            good = false;
            snprintf(run.sim.failure, sizeof(run.sim.failure), "valgrind complained, see above");
        }
        if (!good) {
            failed++;
            tell_failure(&run, seed_now);
            if (!o->keep_going) {
                done++;
                break;
            }
        }
        ops += run.ops;
        states += run.states;
        generations += run.cuts;
    }
    limit_cpu(0);
    printf("sim: %" PRIu64 " scenarios from seed %" PRIu64 ", %" PRIu64 " generations, %" PRIu64
           " ops, %" PRIu64 " states judged, %" PRIu64 " failed, %.1f s\n",
           done, o->seed, generations, ops, states, failed, seconds() - begin);
    return failed;
}

int main(int argc, char **argv)
{
    struct options o = {.seed = 1};

    parse(argc, argv, &o);
    signal(SIGABRT, tell_seed);
    signal(SIGSEGV, tell_seed);
    signal(SIGVTALRM, tell_seed);
    if (o.fresh && getrandom(&o.seed, sizeof(o.seed), 0) == sizeof(o.seed)) {
        // Short enough to be typed again.
        o.seed = o.seed % 1000000000 * 1000;
        printf("sim: fresh seeds from %" PRIu64 " on\n", o.seed);
        fflush(stdout);
    }
    if (o.shrink)
        return shrink(o.seed, &o.limits);
    return run_many(&o) > 0;
}
