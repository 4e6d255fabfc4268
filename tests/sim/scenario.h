// SPDX-License-Identifier: Apache-2.0
// scenario.h: the choices of a seed: an image, the way it is served, the guests' requests, and the
// faults. Nothing runs here.
#ifndef LAZYCOW_TESTS_SIM_SCENARIO_H
#define LAZYCOW_TESTS_SIM_SCENARIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/op.h"
#include "server/export.h"
#include "tests/sim/file_sim.h"
#include "tests/sim/forge.h"

// Restrictions from the command line, or from the search for a shorter trace.
struct scenario_limits {
    // Another draw of times and cuts for an unchanged image and unchanged ops.
    uint64_t salt;
    unsigned generations; // at most; 0: as drawn
    unsigned ops;         // most ops of a generation; 0: as drawn
    bool no_faults;       // no fault but the power cut
    bool no_clean;        // no clean points in between
    unsigned depth;       // most ops in flight; 0: as drawn
    // Indexed by SCENARIO_OP_NUMBER: ops that are left out; NULL: none.
    const bool *skip;
};

#define SCENARIO_GENERATIONS_MAX 6
#define SCENARIO_OPS_MAX 160
#define SCENARIO_OP_NUMBER(generation, i) ((generation)*SCENARIO_OPS_MAX + (i))
#define SCENARIO_OP_NUMBERS (SCENARIO_GENERATIONS_MAX * SCENARIO_OPS_MAX)
#define SCENARIO_PAYLOAD_MAX (300u << 10)

#define SCENARIO_GUESTS_MAX 4
// Memory that the bridge keeps for the largest request here while others have the rest: its payload
// in a buffer of a power of two, and its extents.
#define SCENARIO_RESERVE (640u << 10)

// A way for a guest to leave its connection; another guest takes its place.
enum scenario_leave {
    LEAVE_NOT,
    LEAVE_DISCONNECT, // sends DISC and receives all answers
    // Stops sending, perhaps inside a request, and receives all answers.
    LEAVE_HALF,
    LEAVE_CUT_OFF,
};

// Most backing images of the image.
#define SCENARIO_DEPTH_MAX 5

struct scenario_backing {
    const char *name;
    bool raw;                   // else described by the recipe
    uint64_t size;              // bytes
    struct forge_recipe recipe; // of a qcow2 image
};

struct scenario {
    uint64_t seed;
    struct scenario_limits limits;

    struct forge_recipe image;
    // Created by qcow2/offline/create.h instead of the forge; empty then.
    bool created;
    bool preallocated;
    struct scenario_backing backings[SCENARIO_DEPTH_MAX]; // the nearest first
    unsigned depth;                                       // how many there are

    bool unmap;
    bool force_fua;
    enum detect_zeroes detect_zeroes;
    bool offload; // other threads inflate
    bool loans;   // reads may take loans of the files
    // Payload memory of all guests in bytes; 0: as much as the server has.
    size_t budget;
    int lazy; // enum lazy_refcounts
    size_t cache_bytes;
    // The image is on a block device with so many bytes behind it; 0: on a file.
    uint64_t device;
    bool device_tight;    // and that may be too few
    unsigned unsupported; // sim_disk.unsupported
    bool no_extents;

    unsigned generations;
    unsigned weights[6]; // of ops, by enum op_kind
    unsigned hot;        // per cent of ops that go to a few places
    uint64_t longest;    // bytes
};

// One period in which the image is served.
struct scenario_generation {
    unsigned number;
    unsigned ops;
    unsigned depth;
    enum sim_delays delays;
    uint64_t pause; // most time between two ops
    // Event at which the power goes; 0: not before the end.
    uint64_t cut_at;
    uint64_t cut_barrier; // barrier that does not end any more; 0: none
    // Bytes by which the file can still grow; UINT64_MAX: without limit.
    uint64_t room;
    bool finish; // ends well, unless the power goes before
    bool read_only;
    bool reads_only; // guests change nothing
    // Per cent of the changes that are to be durable at once.
    unsigned fua;
    uint64_t heap_first; // allocations of the server that fail (heap.h)
    uint64_t heap_count;
    unsigned guests;
    // Most bytes that pass at once between a guest and the server; 0: no limit.
    uint64_t portion;
    // Per cent of the times that a guest does not take bytes sent to it.
    unsigned deaf;
    unsigned leave;   // per cent of ops in whose place a guest leaves
    unsigned stop_at; // op before which the server is told to stop
    unsigned clean;   // per cent of ops before which a clean point is requested
    struct sim_fault faults[SIM_FAULTS_MAX];
    unsigned fault_count;
};

struct scenario_op {
    enum op_kind kind;
    unsigned flags;
    uint64_t offset;
    uint64_t length;
    bool zeros; // a write of zeros
    // A read that wants its data in one piece, or a block status of one extent.
    bool whole;
    unsigned guest;
    enum scenario_leave leave; // instead of all the rest
    bool clean_before;
    bool tick_before; // of the host's clock
    uint64_t pause;
};

void scenario_draw(struct scenario *s, uint64_t seed, const struct scenario_limits *limits);
// last: nothing fails, and the generation ends well.
void scenario_draw_generation(const struct scenario *s, unsigned number, bool last,
                              struct scenario_generation *g);
// Makes a generation change nothing and end well.
void scenario_make_idle(struct scenario_generation *g);
void scenario_draw_op(const struct scenario *s, const struct scenario_generation *g, unsigned i,
                      struct scenario_op *op);
// Describes the image, and how it is served, in one line.
void scenario_describe(const struct scenario *s, char *text, size_t bytes);

#endif
