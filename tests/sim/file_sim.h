// SPDX-License-Identifier: Apache-2.0
// file_sim.h: struct file (qcow2/base/file.h) over memory, with a clock of its own, faults and power
// cuts.
#ifndef LAZYCOW_TESTS_SIM_FILE_SIM_H
#define LAZYCOW_TESTS_SIM_FILE_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/file.h"
#include "qcow2/base/offload.h"
#include "tests/sim/disk.h"
#include "tests/sim/rng.h"

// Which requests a fault is about. Each class counts its requests since the power came on.
enum sim_class { SIM_READ, SIM_WRITE, SIM_GROW, SIM_BARRIER, SIM_CLASSES };

// Requests [first, first + count) of a class fail.
struct sim_fault {
    enum sim_class class;
    uint64_t first;
    uint64_t count;
    int error; // negative errno
};

#define SIM_FAULTS_MAX 4

// How long requests take.
enum sim_delays {
    SIM_DELAYS_EVEN,         // all the same: they complete in order
    SIM_DELAYS_SPREAD,       // anything up to a limit
    SIM_DELAYS_TAIL,         // mostly short, some very long
    SIM_DELAYS_SLOW_BARRIER, // as spread, and barriers take as long as ten writes
    SIM_DELAYS_SLOW_WRITE,   // as spread, and some writes outlast several barriers
    SIM_DELAYS_COUNT,
};

// The simulated machine: one run queue, one clock, one power supply.
struct sim {
    struct runq runq;
    struct rng rng;
    uint64_t now;
    enum sim_delays delays;
    TAILQ_HEAD(sim_request_list, sim_request) pending; // in the order of their due times
    uint64_t events;      // requests submitted and completed since the power came on
    uint64_t cut_at;      // the power goes at this event; 0: never
    uint64_t cut_barrier; // or when this barrier was about to end; 0: never
    uint64_t barriers;    // that ended since the power came on
    bool dead;            // it went: requests fail, nothing reaches the disks
    struct sim_fault faults[SIM_FAULTS_MAX];
    unsigned fault_count;
    uint64_t class_count[SIM_CLASSES];
    uint64_t faults_hit;     // requests that failed, other than by the power cut
    uint64_t growth_refused; // of them: for there was no room to grow
    bool trace;
    char failure[512]; // what went wrong, "": nothing
};

void sim_init(struct sim *sim, struct rng rng);
// The power comes on: what is left from before was let go of by sim_disk_cut.
void sim_power_on(struct sim *sim);
// Says what is wrong; the first one counts.
__attribute__((format(printf, 2, 3))) void sim_fail(struct sim *sim, const char *format, ...);
__attribute__((format(printf, 2, 3))) void sim_trace(const struct sim *sim, const char *format,
                                                     ...);

// Runs what is queued, once (runq.h), while memory may run out (heap.h).
bool sim_run(struct sim *sim);
// Counts allocations that failed as faults, those since failed of them had.
void sim_count_heap(struct sim *sim, uint64_t failed);
// Completes the request that is due next. False: there is none.
bool sim_complete_next(struct sim *sim);
// When that will be; UINT64_MAX: there is none.
uint64_t sim_next_due(const struct sim *sim);
// No request is in flight.
bool sim_quiet(const struct sim *sim);
void sim_power_off(struct sim *sim);
// As image_host.offload (qcow2/image.h): the job is done on another thread, some time later.
void sim_offload(struct sim *sim, struct offload_job *job);

// A file on a disk. Returns NULL without memory. The disk and sim outlive it.
struct file *file_sim_open(struct sim *sim, struct sim_disk *disk, const char *name,
                           bool read_only);

#endif
