// SPDX-License-Identifier: Apache-2.0
// file.h: what the engine asks of the file under an image. Implementations live elsewhere
// (server/file_*.c, tests/sim/file_sim.c); the engine never sees a descriptor.
//
// The contract of every implementation:
//  1. done never runs inside file_submit: a completed request is posted to file->runq, which calls
//  it.
//  2. All or an error: a short read or write is resumed below; a read past the end of the file is
//     filled with zeros and is no error.
//  3. Buffers and the file_io belong to the file from file_submit until done runs.
//  4. A FILE_DATASYNC covers exactly the requests whose done ran before it was submitted.
//     Everything else is unordered. It covers the size of the file and its allocation too.
//  5. Requests have any byte alignment; an implementation on O_DIRECT hides that.
//  6. A loan of a FILE_READ shows the file as it is at any time until it is returned, whatever is
//     written there meanwhile, and stays readable; but see loan_copy.
#ifndef LAZYCOW_QCOW2_BASE_FILE_H
#define LAZYCOW_QCOW2_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "qcow2/base/known_extents.h"
#include "qcow2/base/runq.h"

enum file_io_kind {
    FILE_READ,
    FILE_WRITE,
    FILE_DATASYNC,
    FILE_ZERO,  // the range reads as zeros afterwards and stays allocated; grows the file if needed
    FILE_PUNCH, // gives the range back to the host; it reads as zeros; never changes the size
    FILE_ALLOCATE, // reserves space, contents unchanged (new space reads as zeros); grows the file
    FILE_TRUNCATE, // sets the size to offset; length is not used
    FILE_EXTENTS,  // tells data from holes, from offset on; length: how many bytes are of interest
};

struct file_io;
typedef void file_io_done(struct file_io *io);

// How many iovecs one request may have. Callers with more data pieces submit more requests.
#define FILE_IOV_MAX 16

#define FILE_IO_RUNNING 1

// One request, embedded in its owner.
struct file_io {
    // Set by the caller.
    enum file_io_kind kind;
    uint64_t offset; // bytes
    uint64_t length; // bytes; for read and write the sum of the iovecs
    const struct iovec
        *iov; // read and write: at most FILE_IOV_MAX; owned by the caller, kept until done
    int iovcnt;
    bool loan_wanted;            // FILE_READ: the bytes may be left where they are, see loan
    struct file_extent *extents; // FILE_EXTENTS: room for extent_max; owned by the caller
    size_t extent_max;
    uint64_t hole_min; // bytes; a shorter hole counts as data
    file_io_done *done;

    // FILE_IO_RUNNING from file_submit until done runs, then 0 or a negative errno. FILE_ZERO,
    // FILE_PUNCH, FILE_ALLOCATE and FILE_EXTENTS answer -EOPNOTSUPP where the host cannot; the caller
    // then writes zeros, or does without.
    int result;
    // FILE_EXTENTS: extents from offset on, in order and without gaps, as they were at some moment
    // since file_submit; at least one, and more than were asked for where that costs little. Behind
    // the end of the file is a hole.
    size_t extent_count;
    // The read's bytes are here instead of in iov, and loan_return (file_ops) is due; or NULL. Only
    // where loan_wanted was set and result is 0.
    const void *loan;

    // Private to the file.
    struct file *file;
    struct task task;
    uint64_t progress;     // bytes done so far
    int outcome;           // found on another thread, on its way to result
    uint64_t submitted_ns; // when, by a clock of the file
};

struct file_extents;

struct file_ops {
    // See the contract above.
    void (*submit)(struct file *file, struct file_io *io);
    // Blocks until at least one outstanding request was posted to the run queue. Only called while
    // one is outstanding, and never on a served image: it is what the offline commands and opening
    // use.
    void (*wait)(struct file *file);
    // Bytes, or a negative errno.
    int64_t (*size)(struct file *file);
    // The bytes are not used any more; length as the read's. This one and the next may be NULL where
    // there is never a loan.
    void (*loan_return)(struct file *file, const void *bytes, uint64_t length);
    // Copies some bytes of a loan. Returns false when they cannot be had any more: the disk fails.
    // Another way of looking at them must expect that, or that the file was cut, as SIGBUS or EFAULT
    // of a system call. May block.
    bool (*loan_copy)(struct file *file, void *to, const void *bytes, size_t length);
    // Frees it. No request may be outstanding, and no loan.
    void (*close)(struct file *file);
};

struct file {
    const struct file_ops *ops;
    struct runq *runq; // borrowed, outlives the file
    char *name;        // for messages; owned by the implementation
    // Which file it is, whatever its name: no other one has the same pair. 0, 0: not known.
    uint64_t device, inode;
    bool read_only;       // writes must not be submitted
    unsigned outstanding; // requests submitted whose done has not begun to run; kept by file.c
    bool fresh_is_zero;   // space beyond the end reads as zeros once written past (regular files)
    bool shared;          // others may write to it, too
    struct file_extents *extents; // asks where it has holes; NULL until somebody wanted to know
    struct known_extents *known;  // of those: what file.c tells of changes
};

// Fills the private part and submits. kind, offset, length, iov, iovcnt and done are set by the
// caller.
void file_submit(struct file *file, struct file_io *io);

// Used by implementations: records the result and posts the request, whose done then runs from the
// run queue.
void file_io_complete(struct file_io *io, int result);

// Bytes, or a negative errno.
int64_t file_size(struct file *file);

// Waits until nothing is outstanding, running the queue meanwhile. Blocking.
void file_drain(struct file *file);
void file_close(struct file *file);

// The blocking runner: submits, runs the queue and waits until it is done. For opening an image and
// for the offline commands only. Return 0 or a negative errno.
int file_read_blocking(struct file *file, void *buf, uint64_t offset, size_t length);
int file_write_blocking(struct file *file, const void *buf, uint64_t offset, size_t length);
// kind is any but FILE_READ and FILE_WRITE.
int file_do_blocking(struct file *file, enum file_io_kind kind, uint64_t offset, uint64_t length);

#endif
