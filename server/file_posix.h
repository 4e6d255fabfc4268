// SPDX-License-Identifier: Apache-2.0
// file_posix.h: shared by the io_uring and the thread backend: the file behind a descriptor, and
// the requests that are quick enough for the loop's own thread.
#ifndef LAZYCOW_SERVER_FILE_POSIX_H
#define LAZYCOW_SERVER_FILE_POSIX_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/runq.h"
#include "server/file_map.h"
#include "server/file_pace.h"

// Requests that wait for something other than the run queue. They are linked through
// file_io.task.link, which is free until the request completes.
STAILQ_HEAD(io_list, task);

struct backend;

struct backend_ops {
    const char *name;
    // Tries every cached read at once; a ring reads them in batches instead.
    bool inline_reads;
    // Starts a request that was not done inline; posix_file_finish ends it, in this call or later.
    void (*start)(struct backend *backend, struct file_io *io);
    void (*turn)(struct backend *backend);
    // Blocks until the run queue is not empty.
    void (*wait)(struct backend *backend);
    // As backend_prepare(); may be NULL.
    int (*prepare)(struct backend *backend, struct error *err);
    void (*free)(struct backend *backend);
};

struct backend {
    const struct backend_ops *ops;
    struct runq *runq; // borrowed
    int fd;
    // Bytes copied on the loop's thread since the last turn.
    uint64_t inline_bytes;
    // Nanoseconds spent in writes on the loop's thread since the last turn.
    uint64_t inline_write_ns;
    struct file_map map;
    bool alone;   // set by backend_set_alone()
    bool blocked; // for backend_has_blocked()
};

struct posix_file {
    struct file file; // first member
    struct backend *backend;
    int fd;
    bool direct;
    bool no_flush;
    bool block_device;
    // Reads may be served from a mapping (file_map.h).
    bool may_map;
    bool no_nowait_read; // the file system has no RWF_NOWAIT for reads
    // io_uring: this file has answered EAGAIN, so only the ring's workers can wait for it.
    bool always_async;
    // Requests in flight that hold the inode's lock for long.
    unsigned locking;
    // Requests that were not done inline and are not finished.
    unsigned in_flight;
    struct write_pace write_pace;
    struct sync_pace sync_pace;
    // Requests that wait for their turn on the inode's lock.
    struct io_list lane;
    // Requests of the lane that the backend has.
    unsigned lane_started;
};

struct posix_file_options {
    bool read_only;
    bool direct;
    bool no_flush;
    bool block_device;
    // Other processes may write to it.
    bool shared;
};

// Takes fd over on success. Returns NULL when there is no memory.
struct posix_file *posix_file_new(struct backend *backend, int fd, const char *name,
                                  const struct posix_file_options *options);

struct posix_file *posix_file_of(const struct file_io *io);
struct file_io *file_io_of(struct task *task);

// Most bytes of one request that are copied on the loop's thread, and of all of them between two
// turns. Measured on 2 cores (ext4, page cache): handing a 256 KiB write to a worker costs half as
// much again as making it, at 1 MiB it pays; reads never gain, but the loop must not be away for
// long. A copy of 1 MiB takes some 100 us; 4 MiB a turn delay other connections by less than half a
// millisecond.
#define INLINE_WRITE_MAX (256u << 10)
#define INLINE_READ_MAX (1u << 20)
#define INLINE_TURN_BYTES_MAX (4u << 20)

// Tries a read of cached data without waiting. Returns true when the request is over, with its
// result in *result. Otherwise part of it may be done, and the rest needs a thread that can wait.
bool posix_file_try_read(struct file_io *io, int *result);

// Returns true, and counts the bytes, if length is at most max and may still be copied on this
// thread in this turn.
bool backend_admit_inline(struct backend *backend, uint64_t length, uint64_t max);

// Fills iov (room for FILE_IOV_MAX) with the part of a read or write that is left. Returns the
// count.
int posix_file_rest(const struct file_io *io, struct iovec *iov);

// Takes in the result of a system call (bytes or a negative errno). Returns true when the request
// is over, with its result in *result; false when the rest has to be submitted again.
bool posix_file_advance(struct file_io *io, ssize_t answer, int *result);

// Does the rest of the request, blocking. For worker threads: uses only the request and the
// descriptor. Returns the result.
int posix_file_execute(struct file_io *io);

// Returns the fallocate(2) mode of FILE_ZERO, FILE_PUNCH and FILE_ALLOCATE.
int posix_file_fallocate_mode(enum file_io_kind kind);

// Ends a request that the backend's start received.
void posix_file_finish(struct file_io *io, int result);

struct backend *backend_uring_new(struct runq *runq, struct error *err);
struct backend *backend_pool_new(struct runq *runq, struct error *err);

#endif
