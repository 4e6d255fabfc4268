// SPDX-License-Identifier: Apache-2.0
// op.h: one request to an image as data, and the turns that it takes. An op does one thing at a time:
// it runs, waits for an I/O, or waits in a queue. Between two turns it holds no pointer into what
// others may change. op_start() of request/request.h begins one.
#ifndef LAZYCOW_QCOW2_BASE_OP_H
#define LAZYCOW_QCOW2_BASE_OP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

#include "qcow2/base/epoch.h"
#include "qcow2/base/extent.h"
#include "qcow2/base/file.h"
#include "qcow2/base/loan.h"
#include "qcow2/base/runq.h"
#include "qcow2/base/waitq.h"

struct image;
struct op;

enum op_kind {
    OP_READ,
    OP_WRITE,
    OP_DISCARD,      // whole clusters inside the range are given back; the rest is left as it is
    OP_WRITE_ZEROES, // the whole range reads as zeros afterwards
    OP_FLUSH, // every write whose done ran before op_start is durable; offset and length unused
    OP_BLOCK_STATUS, // fills extents
};

// Flags of an op. FUA goes with OP_WRITE, OP_WRITE_ZEROES and OP_DISCARD.
#define OP_FUA (1u << 0)       // done runs when the effect is durable
#define OP_NO_HOLE (1u << 1)   // WRITE_ZEROES: later writes to the range need no new space
#define OP_FAST_ZERO (1u << 2) // WRITE_ZEROES: -ENOTSUP at once where data would have to be written
// READ: extents tell which parts are zeros; their buffer is not filled.
#define OP_REPORT_HOLES (1u << 3)
// READ: bytes may be left where they are, as a loan; extents tell where.
#define OP_LOAN (1u << 4)

// How many extents the caller may ask for in one op: more than any protocol reply should carry is
// waste.
#define OP_EXTENTS_MAX 4096

typedef void op_done(struct op *op);

// What runs an op: a state machine in the order of execution.
struct op_machine {
    const char *name;
    void (*step)(struct op *op);    // one turn
    const char *const *state_names; // indexed by op.state
    int state_count;
};

#define OP_MACHINE(name, step, state_names)                                                        \
    {                                                                                              \
        name, step, state_names, (int)(sizeof(state_names) / sizeof((state_names)[0]))             \
    }

// Private to chain.c: how far a look down the backing chain had come when it had to wait.
struct op_descent {
    struct image *layer; // to go on with; NULL: from the top
    unsigned depth;      // of that layer
    uint64_t changes;    // of the image's mapping until then
    uint64_t guest;      // what is asked for: the image itself has none of it,
    uint64_t length;     // for so many bytes
    uint64_t start;      // what is looked for in layer
    uint64_t left;       // and for how many bytes
};

// Caller-owned; zero it before use and leave it alone from op_start until done runs. Any number of
// ops may be in flight on an image, with overlapping ranges too; overlapping writes take effect in
// some order.
struct op {
    // Set by the caller.
    enum op_kind kind;
    unsigned flags;
    uint64_t offset; // guest bytes; offset + length <= image_size
    uint64_t length; // guest bytes; OP_READ and OP_WRITE at most OP_PAYLOAD_MAX, the others any
    void *buf;       // OP_READ, OP_WRITE: length bytes, kept until done
    op_done *
        done; // runs from the run queue, never inside op_start; the op may be reused or freed there
    struct extent *extents; // OP_BLOCK_STATUS, OP_REPORT_HOLES, OP_LOAN: room for max_extents
    size_t max_extents;

    // Set when done runs.
    int result;          // 0 or a negative errno: EIO, ENOSPC, EPERM, EINVAL, ENOMEM, ENOTSUP
    size_t extent_count; // READ: cover the whole range. OP_BLOCK_STATUS: may end early
    // OP_LOAN: while it has a file the op must be left alone; loan_settle() or loan_return() is due.
    struct loan loan;

    // Private to the engine.
    struct image *image;
    LIST_ENTRY(op) running_link; // in the image, from start to done
    // Its turns on the run queue, its place in a wait queue, and how the last wait or I/O ended.
    struct waiter wait;
    const struct op_machine *machine; // takes the turns until the op is finished
    int state;                        // of the machine
    uint64_t pos;                     // [offset, pos) is done
    uint64_t step_length;             // bytes from pos that the I/O in flight is about
    struct epoch_member plan;   // inside while the op may use host clusters that it has looked up
    bool scanned;               // has loaded a refcount page to look for free clusters
    unsigned char space_waits;  // how often it waited for what was given up to become free
    unsigned char extent_tries; // how often it asked where the file has holes, for one place
    struct op_descent descent;
    struct op_work *work; // what is more than a read or a write in place
    struct file_io io;
    struct iovec iov;
};

// Largest payload of one read or write: what the NBD server admits, and the most a plan has to
// hold.
#define OP_PAYLOAD_MAX (32u << 20)

// What a function answers that has parked the op: the caller returns to the run queue at once.
#define OP_PARKED 1

// Prepares the op for turns of the machine: an internal op (sync, release, recovery) has no owner and is not
// counted.
void op_init(struct op *op, struct image *image, struct runq *runq,
             const struct op_machine *machine);

// The task of an op: one turn of its step function.
void op_take_turn(struct task *task);

// Posts the op for its next turn.
void op_post(struct op *op);

// Parks the op until the queue is woken; it holds no host offset meanwhile. Its next turn has
// wait.result. Returns OP_PARKED, so that one can say `return op_park(op, q);`.
int op_park(struct op *op, struct waitq *q);

// The name of the op's state.
const char *op_state_name(const struct op *op);

// Writes what the op is about, its state, and what it waits for, as one line without a newline into
// text, cut to size bytes.
void op_describe(const struct op *op, char *text, size_t size);

// Submits op->io, whose end is the op's next turn, with wait.result telling how it ended.
void op_submit(struct op *op, struct file *file, enum file_io_kind kind, uint64_t offset,
               uint64_t length, const struct iovec *iov, int iovcnt);

#endif
