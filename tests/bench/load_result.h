// SPDX-License-Identifier: Apache-2.0
// load_result.h: the measurements of a run of the load generator.
#ifndef LAZYCOW_TESTS_LOAD_RESULT_H
#define LAZYCOW_TESTS_LOAD_RESULT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "tests/bench/load_plan.h"

// Latencies in nanoseconds, counted in steps of 1/32 of their power of two: 3 % at the worst.
#define HISTOGRAM_STEP_BITS 5
#define HISTOGRAM_POWERS 40 // 2^40 ns are 18 minutes
#define HISTOGRAM_SLOTS (HISTOGRAM_POWERS << HISTOGRAM_STEP_BITS)

struct histogram {
    uint64_t count;
    uint64_t max;
    uint64_t slots[HISTOGRAM_SLOTS];
};

// The CPU time that a process has used so far, in nanoseconds.
struct cpu_time {
    uint64_t total; // exact
    uint64_t user;  // these two in ticks of 10 ms: /proc/PID/stat
    uint64_t system;
    uint64_t written; // bytes handed to the storage layer: write_bytes of /proc/PID/io
};

struct load_result {
    struct histogram latency[LOAD_KINDS];
    uint64_t errors;  // replies that told one
    uint64_t bytes;   // read or written
    uint64_t started; // CLOCK_MONOTONIC, ns
    uint64_t ended;
    uint64_t sends; // system calls of our own
    uint64_t receives;
    bool has_server; // the server's process is known
    struct cpu_time server_before;
    struct cpu_time server_after;
    uint64_t own_cpu_before; // ns
    uint64_t own_cpu_after;
};

uint64_t clock_now(void);    // CLOCK_MONOTONIC, ns
uint64_t own_cpu_time(void); // ns

// Returns false when the process does not exist.
bool read_cpu_time(pid_t pid, struct cpu_time *time);

void histogram_add(struct histogram *h, uint64_t ns);

// The latency, in ns, that the given share of the requests (0 to 1) did not exceed.
uint64_t histogram_quantile(const struct histogram *h, double share);

// Prints one line for a person.
void load_result_print(const struct load_result *result, FILE *to);

// The caller owns the object. Returns NULL without memory.
json_t *load_result_json(const struct load_result *result);

#endif
