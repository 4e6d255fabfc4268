// SPDX-License-Identifier: Apache-2.0
// disk.h: a simulated disk: what is durable, what was written since, and what a power cut may leave
// of that.
//
// What the disk has after a power cut: all that the last completed barrier covered, and of every
// write, growth, cut, hole punch and zeroed range after it any part, torn at 512 bytes. A barrier
// covers exactly the requests whose done ran before it was submitted.
#ifndef LAZYCOW_TESTS_SIM_DISK_H
#define LAZYCOW_TESTS_SIM_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "qcow2/base/file.h"
#include "tests/sim/memory.h"
#include "tests/sim/rng.h"

#define SIM_SECTOR 512u

struct sim;

// A change of a disk: a request that has been applied to live, or was in flight at the power cut.
struct sim_entry {
    TAILQ_ENTRY(sim_entry) link;
    enum file_io_kind kind;
    uint64_t offset;
    uint64_t length;
    unsigned char *bytes;  // FILE_WRITE
    uint64_t partial_seed; // of a request that failed: which sectors it changed; 0: all
    uint64_t reported_at;  // its place among those whose done ran; 0: it did not
    bool durable;          // a barrier covers it
    bool lost;             // the barrier that covered it failed: no later one does
    bool in_flight;        // when the power went
    char label[48];
};

// A loan that a read took: as live has it at any time.
struct sim_loan {
    LIST_ENTRY(sim_loan) link;
    uint64_t offset;
    uint64_t length;
    unsigned char bytes[];
};

// What is on a disk, and what is on its way. Lives through power cuts.
struct sim_disk {
    struct memory live;                        // what a read sees
    struct memory durable;                     // what the log below is to be applied to after a cut
    TAILQ_HEAD(sim_entry_list, sim_entry) log; // in the order in which reads see them
    uint64_t reported;                         // requests whose done ran
    uint64_t limit;                            // the file cannot grow beyond; bytes
    unsigned unsupported;        // kinds of request that are answered with -EOPNOTSUPP, a bit each
    bool no_extents;             // the host cannot tell holes
    bool device;                 // a block device: its size stays, and fresh space holds anything
    bool loans_made;             // reads may take loans
    LIST_HEAD(, sim_loan) loans; // that were not returned
};

void sim_disk_init(struct sim_disk *disk);
void sim_disk_free(struct sim_disk *disk);
// One of the states that the disk may be found in if the power goes, or went, now; out is
// initialized here.
void sim_disk_cut(const struct sim *sim, const struct sim_disk *disk, struct rng *rng,
                  struct memory *out);
// The disk is found in that state; nothing may be in flight. Takes the pages of state.
void sim_disk_restart(struct sim_disk *disk, struct memory *state);

// For file_sim.c.
// A request completes: reads see it from now on. The disk owns the entry.
void disk_apply(struct sim_disk *disk, struct sim_entry *entry);
// A request was in flight when the power went: it may have reached the disk or not.
void disk_in_flight(struct sim_disk *disk, struct sim_entry *entry, struct rng *rng);
// A barrier ends that covers the first requests whose done ran.
void disk_barrier(struct sim_disk *disk, uint64_t covers, bool success);
extern const char *const disk_kind_names[]; // by enum file_io_kind

#endif
