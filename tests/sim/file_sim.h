// SPDX-License-Identifier: Apache-2.0
// file_sim.h: struct file (qcow2/base/file.h) over memory, with a clock of its own, with faults and
// power cuts.
#ifndef LAZYCOW_TESTS_SIM_FILE_SIM_H
#define LAZYCOW_TESTS_SIM_FILE_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/file.h"
#include "qcow2/base/offload.h"
#include "tests/sim/disk.h"
#include "tests/sim/rng.h"

// Classes of requests that a fault may hit. Each class counts its requests since the power came on.
enum sim_class { SIM_READ, SIM_WRITE, SIM_GROW, SIM_BARRIER, SIM_CLASSES };

// Requests [first, first + count) of a class fail.
struct sim_fault {
    enum sim_class class;
    uint64_t first;
    uint64_t count;
    int error; // negative errno
};

#define SIM_FAULTS_MAX 4

// Distributions of the time that requests take.
enum sim_delays {
    SIM_DELAYS_EVEN,         // all take equally long, so they complete in order
    SIM_DELAYS_SPREAD,       // anything up to a limit
    SIM_DELAYS_TAIL,         // mostly short, some very long
    SIM_DELAYS_SLOW_BARRIER, // spread; barriers take as long as ten writes
    SIM_DELAYS_SLOW_WRITE,   // spread; some writes outlast several barriers
    SIM_DELAYS_COUNT,
};

// The simulated machine: one run queue, one clock, one power supply.
struct sim {
    struct runq runq;
    struct rng rng;
    uint64_t now;
    enum sim_delays delays;
    TAILQ_HEAD(sim_request_list, sim_request) pending; // in the order of their due times
    uint64_t events; // requests submitted and completed since the power came on
    uint64_t cut_at; // the power goes at this event; 0: never
    // The power goes when this barrier is about to end; 0: never.
    uint64_t cut_barrier;
    uint64_t barriers; // that ended since the power came on
    // The power is off: requests fail, and nothing reaches the disks.
    bool dead;
    struct sim_fault faults[SIM_FAULTS_MAX];
    unsigned fault_count;
    uint64_t class_count[SIM_CLASSES];
    // Requests that failed for a reason other than the power cut.
    uint64_t faults_hit;
    // Those of faults_hit that failed because the file could not grow.
    uint64_t growth_refused;
    bool trace;
    char failure[512]; // the first failure; "": none
};

void sim_init(struct sim *sim, struct rng rng);
// Turns the power on. sim_disk_cut has disposed of the requests from before.
void sim_power_on(struct sim *sim);
// Records a failure; the first one counts.
__attribute__((format(printf, 2, 3))) void sim_fail(struct sim *sim, const char *format, ...);
__attribute__((format(printf, 2, 3))) void sim_trace(const struct sim *sim, const char *format,
                                                     ...);

// Runs the queue once (runq.h), while allocations may fail (heap.h).
bool sim_run(struct sim *sim);
// Counts failed allocations as faults. failed of them had failed before.
void sim_count_heap(struct sim *sim, uint64_t failed);
// Completes the request that is due next. Returns false when there is none.
bool sim_complete_next(struct sim *sim);
// Returns the time at which the next request is due; UINT64_MAX: there is none.
uint64_t sim_next_due(const struct sim *sim);
// Returns true when no request is in flight.
bool sim_quiet(const struct sim *sim);
void sim_power_off(struct sim *sim);
// Does the work of image_host.offload (qcow2/core/host.h): the job runs on another thread some time
// later.
void sim_offload(struct sim *sim, struct offload_job *job);

// Opens a file on a disk. Returns NULL without memory. The disk and sim outlive it.
struct file *file_sim_open(struct sim *sim, struct sim_disk *disk, const char *name,
                           bool read_only);

#endif
