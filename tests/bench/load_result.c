// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/load_result.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t read_clock(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

uint64_t clock_now(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t own_cpu_time(void)
{
    return read_clock(CLOCK_PROCESS_CPUTIME_ID);
}

// Reads utime and stime, the 14th and 15th field of /proc/PID/stat. The name in the second field
// may have blanks and parentheses.
static bool read_ticks(pid_t pid, struct cpu_time *time)
{
    const uint64_t tick = 1000000000ull / (uint64_t)sysconf(_SC_CLK_TCK);
    char path[64];
    char line[1024];
    const char *name_end;
    unsigned long user;
    unsigned long system;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%ld/stat", (long)pid);
    file = fopen(path, "r");
    if (file == NULL)
        return false;
    name_end = fgets(line, sizeof(line), file) != NULL ? strrchr(line, ')') : NULL;
    fclose(file);
    if (name_end == NULL ||
        sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
               &system) != 2)
        return false;
    time->user = user * tick;
    time->system = system * tick;
    return true;
}

static void read_written(pid_t pid, struct cpu_time *time)
{
    char path[64];
    char line[128];
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%ld/io", (long)pid);
    file = fopen(path, "r");
    if (file == NULL)
        return; // another user's process: the count stays zero
    while (fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "write_bytes: %" SCNu64, &time->written) == 1)
            break;
    }
    fclose(file);
}

bool read_cpu_time(pid_t pid, struct cpu_time *time)
{
    clockid_t clock;

    *time = (struct cpu_time){0};
    if (clock_getcpuclockid(pid, &clock) != 0 || !read_ticks(pid, time))
        return false;
    time->total = read_clock(clock);
    read_written(pid, time);
    return true;
}

// ---- Histogram ----------------------------------------------------------------------------------

static unsigned slot_of(uint64_t ns)
{
    const uint64_t steps = 1ull << HISTOGRAM_STEP_BITS;
    unsigned shift;
    unsigned slot;

    if (ns < steps)
        return (unsigned)ns;
    shift = 63 - (unsigned)__builtin_clzll(ns) - HISTOGRAM_STEP_BITS;
    slot = ((shift + 1) << HISTOGRAM_STEP_BITS) + (unsigned)((ns >> shift) - steps);
    return slot < HISTOGRAM_SLOTS ? slot : HISTOGRAM_SLOTS - 1;
}

// Returns the largest value that is counted in the slot.
static uint64_t slot_end(unsigned slot)
{
    const uint64_t steps = 1ull << HISTOGRAM_STEP_BITS;
    unsigned shift = slot >> HISTOGRAM_STEP_BITS;

    if (shift == 0)
        return slot;
    return (((slot & (steps - 1)) + steps + 1) << (shift - 1)) - 1;
}

void histogram_add(struct histogram *h, uint64_t ns)
{
    h->count++;
    h->slots[slot_of(ns)]++;
    if (ns > h->max)
        h->max = ns;
}

uint64_t histogram_quantile(const struct histogram *h, double share)
{
    uint64_t wanted = (uint64_t)(share * (double)h->count);
    uint64_t seen = 0;

    for (unsigned slot = 0; slot < HISTOGRAM_SLOTS; slot++) {
        seen += h->slots[slot];
        if (seen > wanted)
            return slot_end(slot) < h->max ? slot_end(slot) : h->max;
    }
    return h->max;
}

static void histogram_merge(struct histogram *to, const struct histogram *from)
{
    to->count += from->count;
    for (unsigned slot = 0; slot < HISTOGRAM_SLOTS; slot++)
        to->slots[slot] += from->slots[slot];
    if (from->max > to->max)
        to->max = from->max;
}

// ---- Report -------------------------------------------------------------------------------------

static void all_kinds(const struct load_result *result, struct histogram *all)
{
    memset(all, 0, sizeof(*all));
    for (unsigned kind = 0; kind < LOAD_KINDS; kind++)
        histogram_merge(all, &result->latency[kind]);
}

static double seconds(const struct load_result *result)
{
    return (double)(result->ended - result->started) / 1e9;
}

// Returns microseconds of CPU for each request.
static double per_request(uint64_t before, uint64_t after, uint64_t requests)
{
    return requests > 0 ? (double)(after - before) / 1e3 / (double)requests : 0;
}

void load_result_print(const struct load_result *result, FILE *to)
{
    struct histogram all;

    all_kinds(result, &all);
    fprintf(
        to,
        "%.0f IOPS  %.1f MiB/s  p50 %.1f us  p99 %.1f us  p999 %.1f us  max %.1f us  "
        "%" PRIu64 " requests  %" PRIu64 " errors",
        (double)all.count / seconds(result), (double)result->bytes / 1048576.0 / seconds(result),
        (double)histogram_quantile(&all, 0.5) / 1e3, (double)histogram_quantile(&all, 0.99) / 1e3,
        (double)histogram_quantile(&all, 0.999) / 1e3, (double)all.max / 1e3, all.count,
        result->errors);
    if (result->has_server)
        fprintf(to, "  server CPU %.2f us/request",
                per_request(result->server_before.total, result->server_after.total, all.count));
    fprintf(to, "  own CPU %.2f us/request\n",
            per_request(result->own_cpu_before, result->own_cpu_after, all.count));
}

static json_t *latency_json(const struct histogram *h)
{
    return json_pack("{s:I, s:f, s:f, s:f, s:f}", "requests", (json_int_t)h->count, "p50_us",
                     (double)histogram_quantile(h, 0.5) / 1e3, "p99_us",
                     (double)histogram_quantile(h, 0.99) / 1e3, "p999_us",
                     (double)histogram_quantile(h, 0.999) / 1e3, "max_us", (double)h->max / 1e3);
}

static void add_server(json_t *object, const struct load_result *result, uint64_t requests)
{
    const struct cpu_time *before = &result->server_before;
    const struct cpu_time *after = &result->server_after;

    json_object_set_new(object, "server_cpu_us",
                        json_real(per_request(before->total, after->total, requests)));
    json_object_set_new(object, "server_user_us",
                        json_real(per_request(before->user, after->user, requests)));
    json_object_set_new(object, "server_system_us",
                        json_real(per_request(before->system, after->system, requests)));
    json_object_set_new(
        object, "server_written_bytes",
        json_real(requests > 0 ? (double)(after->written - before->written) / (double)requests
                               : 0));
}

json_t *load_result_json(const struct load_result *result)
{
    struct histogram all;
    json_t *object;
    json_t *kinds = json_object();

    all_kinds(result, &all);
    object = json_pack(
        "{s:f, s:f, s:f, s:I, s:f, s:f, s:f}", "seconds", seconds(result), "iops",
        (double)all.count / seconds(result), "mib_per_second",
        (double)result->bytes / 1048576.0 / seconds(result), "errors", (json_int_t)result->errors,
        "own_cpu_us", per_request(result->own_cpu_before, result->own_cpu_after, all.count),
        "own_sends", all.count > 0 ? (double)result->sends / (double)all.count : 0.0,
        "own_receives", all.count > 0 ? (double)result->receives / (double)all.count : 0.0);
    if (object == NULL || kinds == NULL) {
        json_decref(object);
        json_decref(kinds);
        return NULL;
    }
    if (result->has_server)
        add_server(object, result, all.count);
    json_object_set_new(object, "latency", latency_json(&all));
    for (unsigned kind = 0; kind < LOAD_KINDS; kind++) {
        if (result->latency[kind].count > 0)
            json_object_set_new(kinds, load_kinds[kind].name, latency_json(&result->latency[kind]));
    }
    json_object_set_new(object, "kinds", kinds);
    return object;
}
