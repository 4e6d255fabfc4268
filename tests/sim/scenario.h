// SPDX-License-Identifier: Apache-2.0
// scenario.h: what a seed stands for: an image, how it is served, what guests do to it, and what
// goes wrong. Only choices, nothing runs here.
#ifndef LAZYCOW_TESTS_SIM_SCENARIO_H
#define LAZYCOW_TESTS_SIM_SCENARIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/op.h"
#include "server/export.h"
#include "tests/sim/file_sim.h"
#include "tests/sim/forge.h"

// What the command line, or the search for a shorter trace, takes away from a seed.
struct scenario_limits {
    uint64_t salt;        // another draw of times and cuts for the same image and ops
    unsigned generations; // at most; 0: as drawn
    unsigned ops;         // a generation, at most; 0: as drawn
    bool no_faults;       // nothing fails but the power
    bool no_clean;        // no clean points in between
    unsigned depth;       // ops in flight, at most; 0: as drawn
    const bool *skip;     // by SCENARIO_OP_NUMBER: ops that are left out; NULL: none
};

#define SCENARIO_GENERATIONS_MAX 6
#define SCENARIO_OPS_MAX 160
#define SCENARIO_OP_NUMBER(generation, i) ((generation)*SCENARIO_OPS_MAX + (i))
#define SCENARIO_OP_NUMBERS (SCENARIO_GENERATIONS_MAX * SCENARIO_OPS_MAX)
#define SCENARIO_PAYLOAD_MAX (300u << 10)

#define SCENARIO_GUESTS_MAX 4
// Memory that the bridge keeps for the largest request here, when others have the rest: its payload
// in a buffer of a power of two, and extents.
#define SCENARIO_RESERVE (640u << 10)

// How a guest leaves its connection; another one takes its place.
enum scenario_leave {
    LEAVE_NOT,
    LEAVE_DISCONNECT, // says so, and hears all answers
    LEAVE_HALF,       // stops sending, perhaps in a request, and hears what is still said
    LEAVE_CUT_OFF,
};

// Images behind the image, at most.
#define SCENARIO_DEPTH_MAX 5

struct scenario_backing {
    const char *name;
    bool raw;                   // else the recipe says what it is
    uint64_t size;              // bytes
    struct forge_recipe recipe; // of a qcow2 image
};

struct scenario {
    uint64_t seed;
    struct scenario_limits limits;

    struct forge_recipe image;
    bool created; // by qcow2/offline/create.h instead of the forge; empty then
    bool preallocated;
    struct scenario_backing backings[SCENARIO_DEPTH_MAX]; // the nearest first
    unsigned depth;                                       // how many there are

    bool unmap;
    bool force_fua;
    enum detect_zeroes detect_zeroes;
    bool offload;  // inflating is done by other threads
    bool loans;    // reads may take loans of the files
    size_t budget; // payload memory of all guests, bytes; 0: as much as the server has
    int lazy;      // enum lazy_refcounts
    size_t cache_bytes;
    uint64_t device;      // the image is on a block device, with so many bytes behind it; 0: a file
    bool device_tight;    // and that may be too few
    unsigned unsupported; // sim_disk.unsupported
    bool no_extents;

    unsigned generations;
    unsigned weights[6]; // of ops, by enum op_kind
    unsigned hot;        // per cent of ops that go to a few places
    uint64_t longest;    // bytes
};

// One time that the image is served.
struct scenario_generation {
    unsigned number;
    unsigned ops;
    unsigned depth;
    enum sim_delays delays;
    uint64_t pause;       // most time between two ops
    uint64_t cut_at;      // event at which the power goes; 0: not before the end
    uint64_t cut_barrier; // barrier that does not end any more; 0: none
    uint64_t room;        // bytes that the file can still grow by; UINT64_MAX: as it likes
    bool finish;          // ends well, unless the power goes meanwhile
    bool read_only;
    bool reads_only;     // guests change nothing
    unsigned fua;        // per cent of the changes that are to be durable at once
    uint64_t heap_first; // allocations of the server that fail (heap.h)
    uint64_t heap_count;
    unsigned guests;
    uint64_t portion; // bytes that pass at once between a guest and the server, at most; 0: all
    unsigned deaf;    // per cent of the times that a guest does not take what it is sent
    unsigned leave;   // per cent of ops in whose place a guest leaves
    unsigned stop_at; // op before which the server is told to stop
    unsigned clean;   // per cent of ops before which a clean point is asked for
    struct sim_fault faults[SIM_FAULTS_MAX];
    unsigned fault_count;
};

struct scenario_op {
    enum op_kind kind;
    unsigned flags;
    uint64_t offset;
    uint64_t length;
    bool zeros; // a write of zeros
    bool whole; // a read that wants its data in one piece, a block status of one extent
    unsigned guest;
    enum scenario_leave leave; // instead of all the rest
    bool clean_before;
    bool tick_before; // of the host's clock
    uint64_t pause;
};

void scenario_draw(struct scenario *s, uint64_t seed, const struct scenario_limits *limits);
// last: nothing goes wrong, and it ends well.
void scenario_draw_generation(const struct scenario *s, unsigned number, bool last,
                              struct scenario_generation *g);
// Nothing is changed in it, and it ends well.
void scenario_make_idle(struct scenario_generation *g);
void scenario_draw_op(const struct scenario *s, const struct scenario_generation *g, unsigned i,
                      struct scenario_op *op);
// One line of text about the image and how it is served.
void scenario_describe(const struct scenario *s, char *text, size_t bytes);

#endif
