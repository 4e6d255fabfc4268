// SPDX-License-Identifier: Apache-2.0
// file.h: the file under an image, as the engine sees it. Implementations live elsewhere
// (server/file_*.c, tests/sim/file_sim.c); the engine never sees a descriptor.
//
// The contract of every implementation:
//  1. done never runs inside file_submit. A completed request is posted to file->runq, which calls
//     done.
//  2. A request succeeds as a whole or fails. The implementation resumes a short read or write. A
//     read past the end of the file is filled with zeros and succeeds.
//  3. Buffers and the file_io belong to the file from file_submit until done runs.
//  4. A FILE_DATASYNC covers exactly the requests whose done ran before it was submitted, with the
//     size of the file and its allocation. All other requests are unordered.
//  5. Requests have any byte alignment; an implementation on O_DIRECT hides that.
//  6. The bytes of a loan stay readable until loan_return. They show the content of the file at any
//     moment, so a later write to the range may show. loan_copy tells how they may become
//     unreadable.
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
    // The range reads as zeros afterwards and stays allocated. Grows the file if needed.
    FILE_ZERO,
    // The range goes back to the host and reads as zeros. Never changes the size of the file.
    FILE_PUNCH,
    // Reserves space. Contents stay unchanged, new space reads as zeros. Grows the file if needed.
    FILE_ALLOCATE,
    // Sets the size of the file to offset. length is not used.
    FILE_TRUNCATE,
    // Tells data from holes from offset on. length: how many bytes are of interest.
    FILE_EXTENTS,
};

struct file_io;
typedef void file_io_done(struct file_io *io);

// Most iovecs of one request. A caller with more pieces of data submits more requests.
#define FILE_IOV_MAX 16

#define FILE_IO_RUNNING 1

// One request, embedded in its owner.
struct file_io {
    // Set by the caller.
    enum file_io_kind kind;
    uint64_t offset; // bytes
    // Bytes. For reads and writes the sum of the iovecs.
    uint64_t length;
    // Reads and writes: at most FILE_IOV_MAX iovecs. Owned by the caller, kept until done.
    const struct iovec *iov;
    int iovcnt;
    // FILE_READ: the bytes may be lent instead of copied to iov, see loan.
    bool loan_wanted;
    // FILE_EXTENTS: room for extent_max extents. Owned by the caller.
    struct file_extent *extents;
    size_t extent_max;
    // FILE_EXTENTS: bytes; a shorter hole counts as data.
    uint64_t hole_min;
    file_io_done *done;

    // FILE_IO_RUNNING from file_submit until done runs, then 0 or a negative errno. FILE_ZERO,
    // FILE_PUNCH, FILE_ALLOCATE and FILE_EXTENTS end with -EOPNOTSUPP on a host that has no such
    // operation; the caller then writes zeros, or goes on without.
    int result;
    // FILE_EXTENTS: at least one extent, from offset on, in order and without gaps, as they were at
    // some moment since file_submit. The file may tell more extents than were asked for where that
    // costs little. The space behind the end of the file counts as a hole.
    size_t extent_count;
    // Address of the bytes of a read that were lent instead of copied to iov; the owner ends the
    // loan with loan_return of file_ops. NULL: no loan. Set only with loan_wanted and result 0.
    const void *loan;

    // Private to the file.
    struct file *file;
    struct task task;
    // Bytes transferred so far.
    uint64_t progress;
    // The result found on another thread, until the loop's thread stores it in result.
    int outcome;
    uint64_t submitted_ns; // time of the submit, by a clock of the file
};

struct file_extents;

struct file_ops {
    // See the contract above.
    void (*submit)(struct file *file, struct file_io *io);
    // Blocks until at least one outstanding request was posted to the run queue. Called only while
    // a request is outstanding, and only by the offline commands and while an image is opened or
    // closed, never while it is served.
    void (*wait)(struct file *file);
    // Returns the size in bytes, or a negative errno.
    int64_t (*size)(struct file *file);
    // Ends a loan. length is that of the read. loan_return and loan_copy may be NULL in a file that
    // never lends.
    void (*loan_return)(struct file *file, const void *bytes, uint64_t length);
    // Copies a part of a loan. Returns false when the bytes cannot be read any more, because the
    // disk fails or the file was cut. Code that reads them without loan_copy must then expect
    // SIGBUS, or EFAULT of a system call. May block.
    bool (*loan_copy)(struct file *file, void *to, const void *bytes, size_t length);
    // Frees the file. No request may be outstanding, and no loan.
    void (*close)(struct file *file);
};

struct file {
    const struct file_ops *ops;
    // Borrowed; outlives the file.
    struct runq *runq;
    // The name for messages. Owned by the implementation.
    char *name;
    // Identify the file whatever its name: no other file has this pair. 0, 0: not known.
    uint64_t device, inode;
    // Writes must not be submitted.
    bool read_only;
    // Requests submitted whose done has not begun to run. Kept by file.c.
    unsigned outstanding;
    // Space beyond the end reads as zeros once the file has grown over it (regular files).
    bool fresh_is_zero;
    // Other programs may write to the file, too.
    bool shared;
    // Asks the host where the file has holes. NULL until the first question.
    struct file_extents *extents;
    // A part of extents: file.c tells it of changes.
    struct known_extents *known;
};

// Fills the private part and submits. The caller has set kind, offset, length, iov, iovcnt and
// done.
void file_submit(struct file *file, struct file_io *io);

// For implementations: records the result and posts the request. Its done runs from the run queue.
void file_io_complete(struct file_io *io, int result);

// Returns the size in bytes, or a negative errno.
int64_t file_size(struct file *file);

// Runs the queue until no request is outstanding. Blocking.
void file_drain(struct file *file);
void file_close(struct file *file);

// Submit one request and run the queue until it is done. Only for opening and closing an image and
// for the offline commands. Return 0 or a negative errno.
int file_read_blocking(struct file *file, void *buf, uint64_t offset, size_t length);
int file_write_blocking(struct file *file, const void *buf, uint64_t offset, size_t length);
// kind is neither FILE_READ nor FILE_WRITE.
int file_do_blocking(struct file *file, enum file_io_kind kind, uint64_t offset, uint64_t length);

#endif
