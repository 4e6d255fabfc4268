// SPDX-License-Identifier: Apache-2.0
// disk.h: a simulated disk: the durable bytes, the changes since, and the states that a power cut
// may leave.
//
// After a power cut the disk has all changes that the last completed barrier covered, and of every
// later write, growth, cut, hole punch and zeroed range any part, torn at 512 bytes. A barrier
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
    unsigned char *bytes; // FILE_WRITE
    // Of a request that failed: selects the sectors that it changed; 0: all.
    uint64_t partial_seed;
    // Its place in the order in which done ran; 0: done did not run.
    uint64_t reported_at;
    bool durable; // a barrier covers it
    // The barrier that covered it failed, so no later barrier makes it durable.
    bool lost;
    bool in_flight; // when the power went
    char label[48];
};

// A loan of a read. It shows the bytes of live at any time.
struct sim_loan {
    LIST_ENTRY(sim_loan) link;
    uint64_t offset;
    uint64_t length;
    unsigned char bytes[];
};

// The contents of a disk, and the changes on their way. Lives through power cuts.
struct sim_disk {
    struct memory live; // what a read sees
    // The state to which the log below is applied after a cut.
    struct memory durable;
    TAILQ_HEAD(sim_entry_list, sim_entry) log; // in the order in which reads see them
    uint64_t reported;                         // requests whose done ran
    uint64_t limit;                            // bytes beyond which the file cannot grow
    // Kinds of requests that end with -EOPNOTSUPP, a bit each.
    unsigned unsupported;
    bool no_extents; // the host cannot tell holes
    // A block device: it keeps its size, and fresh space holds any bytes.
    bool device;
    bool loans_made;             // reads may take loans
    LIST_HEAD(, sim_loan) loans; // that were not returned
};

void sim_disk_init(struct sim_disk *disk);
void sim_disk_free(struct sim_disk *disk);
// Draws one of the states that the disk may have if the power goes, or went, now. out is
// initialized here.
void sim_disk_cut(const struct sim *sim, const struct sim_disk *disk, struct rng *rng,
                  struct memory *out);
// Gives the disk that state and takes its pages. No request may be in flight.
void sim_disk_restart(struct sim_disk *disk, struct memory *state);

// For file_sim.c. A request completes: reads see its change from now on. The disk owns the entry.
void disk_apply(struct sim_disk *disk, struct sim_entry *entry);
// A request was in flight when the power went: its change may have reached the disk.
void disk_in_flight(struct sim_disk *disk, struct sim_entry *entry, struct rng *rng);
// A barrier ends that covers the first `covers` requests whose done ran.
void disk_barrier(struct sim_disk *disk, uint64_t covers, bool success);
extern const char *const disk_kind_names[]; // by enum file_io_kind

#endif
