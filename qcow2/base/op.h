// SPDX-License-Identifier: Apache-2.0
// op.h: one request to an image as data, and the turns that it takes. An op does one thing at a
// time: it runs, waits for an I/O, or waits in a queue. Between two turns it holds no pointer into
// data that others may change. op_start() of request/request.h begins an op.
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
    // Whole clusters inside the range are given up; the rest stays as it is.
    OP_DISCARD,
    // The whole range reads as zeros afterwards.
    OP_WRITE_ZEROES,
    // Every write whose done ran before op_start is durable afterwards. offset and length are
    // unused.
    OP_FLUSH,
    OP_BLOCK_STATUS, // fills extents
};

// Flags of an op. OP_FUA goes with OP_WRITE, OP_WRITE_ZEROES and OP_DISCARD.
#define OP_FUA (1u << 0)     // done runs when the effect is durable
#define OP_NO_HOLE (1u << 1) // OP_WRITE_ZEROES: later writes to the range need no new space
// OP_WRITE_ZEROES: ends with -ENOTSUP at once where data would have to be written.
#define OP_FAST_ZERO (1u << 2)
// OP_READ: extents tell which parts are zeros; the buffer is not filled there.
#define OP_REPORT_HOLES (1u << 3)
// OP_READ: bytes may be lent instead of copied; extents tell where.
#define OP_LOAN (1u << 4)

// Most extents of one op. More would only fill a reply that no client wants.
#define OP_EXTENTS_MAX 4096

typedef void op_done(struct op *op);

// Runs an op: a state machine in the order of execution.
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

// Private to chain.c: position of a suspended backing-chain lookup.
struct op_descent {
    // The layer to continue with; NULL: start from the top.
    struct image *layer;
    unsigned depth; // of that layer
    // The image's mapping_changes when the lookup was suspended.
    uint64_t changes;
    // First guest byte of a range that the image itself does not map.
    uint64_t guest;
    // Bytes of that range.
    uint64_t length;
    // First guest byte that is looked up in layer.
    uint64_t start;
    // Bytes that are looked up in layer.
    uint64_t left;
};

// Owned by the caller, who zeroes it before use and does not touch it from op_start until done
// runs. Any number of ops may be in flight on an image, also with overlapping ranges; overlapping
// writes take effect in some order.
struct op {
    // Set by the caller.
    enum op_kind kind;
    unsigned flags;
    // Guest bytes; offset + length <= image_size.
    uint64_t offset;
    // Guest bytes. OP_READ and OP_WRITE: at most OP_PAYLOAD_MAX; other kinds: any.
    uint64_t length;
    // OP_READ, OP_WRITE: length bytes, kept until done.
    void *buf;
    // Runs from the run queue, never inside op_start. The op may be reused or freed there.
    op_done *done;
    // OP_BLOCK_STATUS, OP_REPORT_HOLES, OP_LOAN: room for max_extents.
    struct extent *extents;
    size_t max_extents;

    // Set when done runs.
    // 0 or a negative errno: EIO, ENOSPC, EPERM, EINVAL, ENOMEM, ENOTSUP.
    int result;
    // OP_READ: the extents cover the whole range. OP_BLOCK_STATUS: they may end early.
    size_t extent_count;
    // OP_LOAN: while it has a file the owner keeps the op, and ends the loan with loan_settle() or
    // loan_return().
    struct loan loan;

    // Private to the engine.
    struct image *image;
    // In the image's list of running ops, from start to done.
    LIST_ENTRY(op) running_link;
    // The op's task on the run queue, its place in a wait queue, and the result of its last wait or
    // I/O.
    struct waiter wait;
    // Takes the op's turns until it is finished.
    const struct op_machine *machine;
    int state;            // one of the machine's states
    uint64_t pos;         // guest bytes [offset, pos) are done
    uint64_t step_length; // bytes from pos that the I/O in flight covers
    // Inside while the op may use host clusters that it has looked up.
    struct epoch_member plan;
    // The op has loaded a refcount page to look for free clusters.
    bool scanned;
    // How often the op has waited for given-up clusters to become free.
    unsigned char space_waits;
    // How often the op has asked the host about the extent at pos.
    unsigned char extent_tries;
    struct op_descent descent;
    // State that only ops with more than a read or a write in place need; else NULL.
    struct op_work *work;
    struct file_io io;
    struct iovec iov;
};

// Most bytes of one read or write: the NBD server admits no more, and a plan has to hold no more.
#define OP_PAYLOAD_MAX (32u << 20)

// Returned by a function that has parked the op: the caller returns to the run queue at once.
#define OP_PARKED 1

// Prepares the op for turns of the machine. An internal op (sync, release, recovery) has no owner
// and is not counted as running.
void op_init(struct op *op, struct image *image, struct runq *runq,
             const struct op_machine *machine);

// The task of an op: takes one turn of its machine.
void op_take_turn(struct task *task);

// Posts the op for its next turn.
void op_post(struct op *op);

// Parks the op until the queue is woken. A parked op holds no host offset. Its next turn finds the
// result in wait.result. Returns OP_PARKED, so that a caller can write `return op_park(op, q);`.
int op_park(struct op *op, struct waitq *q);

// Returns the name of the op's state.
const char *op_state_name(const struct op *op);

// Writes one line without a newline into text, cut to size bytes: the op's kind and range, its
// state, and the event that it waits for.
void op_describe(const struct op *op, char *text, size_t size);

// Submits op->io. When it ends the op takes its next turn, with the outcome in wait.result.
void op_submit(struct op *op, struct file *file, enum file_io_kind kind, uint64_t offset,
               uint64_t length, const struct iovec *iov, int iovcnt);

#endif
