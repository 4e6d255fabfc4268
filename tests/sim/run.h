// SPDX-License-Identifier: Apache-2.0
// run.h: carries out a scenario: serves the image generation after generation, cuts the power, and
// has what is left judged.
#ifndef LAZYCOW_TESTS_SIM_RUN_H
#define LAZYCOW_TESTS_SIM_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/file_sim.h"
#include "tests/sim/model.h"
#include "tests/sim/reader.h"
#include "tests/sim/scenario.h"

// States that a disk may be found in are judged so many at each cut; the image goes on from the
// last.
#define RUN_STATES 3

struct run {
    struct scenario scenario;
    struct sim sim;
    struct sim_disk disk;
    struct sim_disk backing_disks[SCENARIO_DEPTH_MAX];
    struct memory pristine; // the image in the beginning
    struct reader pristine_reader;
    struct reader backing_readers[SCENARIO_DEPTH_MAX];
    unsigned char *originals; // what zones held in the beginning, one zone after the other
    struct model model;
    uint64_t leaks;      // clusters that leaked when the image was last judged
    uint64_t beyond;     // references beyond the end of the file that it had then
    bool dirty;          // its dirty bit was set then
    bool out_of_room;    // the last end failed for want of room, and nothing else ever failed
    uint32_t last_value; // that a write had (pattern.h)
    uint64_t ops;        // started
    uint64_t states;     // judged
    uint64_t cuts;
    uint64_t settles; // how often the engine wanted replies to be settled
    bool with_qemu;   // qemu-img has a look at every state, too
};

// Returns whether all was well; run->sim.failure says what was not. Zero run before, set
// sim.trace and with_qemu afterwards as wanted.
bool run_scenario(struct run *run, uint64_t seed, const struct scenario_limits *limits, bool trace,
                  bool with_qemu);

#endif
