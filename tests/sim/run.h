// SPDX-License-Identifier: Apache-2.0
// run.h: carries out a scenario: serves the image generation after generation, cuts the power, and
// judges the states that are left.
#ifndef LAZYCOW_TESTS_SIM_RUN_H
#define LAZYCOW_TESTS_SIM_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/file_sim.h"
#include "tests/sim/model.h"
#include "tests/sim/reader.h"
#include "tests/sim/scenario.h"

// Number of states that are judged at each cut; the image goes on from the last.
#define RUN_STATES 3

struct run {
    struct scenario scenario;
    struct sim sim;
    struct sim_disk disk;
    struct sim_disk backing_disks[SCENARIO_DEPTH_MAX];
    struct memory pristine; // the image in the beginning
    struct reader pristine_reader;
    struct reader backing_readers[SCENARIO_DEPTH_MAX];
    // Initial content of the zones, one zone after the other.
    unsigned char *originals;
    struct model model;
    // Clusters that leaked when the image was last judged.
    uint64_t leaks;
    // References beyond the end of the file that the image had then.
    uint64_t beyond;
    bool dirty; // its dirty bit was set then
    // The last end failed only because there was no room.
    bool out_of_room;
    uint32_t last_value; // the value of the last write (pattern.h)
    uint64_t ops;        // started
    uint64_t states;     // judged
    uint64_t cuts;
    uint64_t settles; // how often the engine asked to settle replies
    bool with_qemu;   // qemu-img looks at every state, too
};

// Returns true when all went well; else run->sim.failure has the failure. The caller zeroes run,
// and then sets sim.trace and with_qemu as wanted.
bool run_scenario(struct run *run, uint64_t seed, const struct scenario_limits *limits, bool trace,
                  bool with_qemu);

#endif
