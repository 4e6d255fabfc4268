// SPDX-License-Identifier: Apache-2.0
// file_backend.h: local files and block devices as struct file (qcow2/base/file.h), over io_uring
// or over threads. A backend belongs to the thread that owns the run queue, and to the process that
// made it: make it after any fork.
//
// The owner's loop polls backend_fd for readability. Before it sleeps, it calls backend_turn and
// drains the run queue until both have nothing left to do. All work that backend_turn leaves
// unfinished can wake the loop through backend_fd.
#ifndef LAZYCOW_SERVER_FILE_BACKEND_H
#define LAZYCOW_SERVER_FILE_BACKEND_H

#include <stdbool.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/runq.h"
#include "server/file_locking.h"

struct backend;

enum backend_kind {
    BACKEND_AUTO, // io_uring if the kernel and the container allow it, else threads
    BACKEND_IO_URING,
    BACKEND_THREADS,
};

// runq is borrowed and outlives the backend. Returns NULL with a message if that kind cannot be
// had; BACKEND_AUTO fails only if threads cannot be started either.
struct backend *backend_new(enum backend_kind kind, struct runq *runq, struct error *err);

// Makes the kernel start the threads that requests may need later. Called before anything is
// served, but after privileges are dropped, which threads of the kernel would keep. No request may
// be outstanding. Returns 0, or a negative errno with a message that names the limit.
int backend_prepare(struct backend *backend, struct error *err);

// Returns the kind that BACKEND_AUTO became: "io_uring" or "threads".
const char *backend_name(const struct backend *backend);

// Readable when a turn would find a completed request. Owned by the backend: do not read from it.
int backend_fd(const struct backend *backend);

// Submits the requests queued since the last turn, in one system call where possible, and posts
// completed ones to the run queue. Never blocks. Makes no system call when there is nothing to do.
void backend_turn(struct backend *backend);

// Set while a single request is in flight, so that submit may block the thread for a few hundred
// microseconds and delay nobody else. Off at first.
void backend_set_alone(struct backend *backend, bool alone);

// Returns true if submit has blocked the thread since the last call: requests that came meanwhile
// were delayed, so the client was not alone.
bool backend_has_blocked(struct backend *backend);

// Allows mapping the parts of files that are read often and are in the host's page cache, up to so
// many bytes of all files together; 0 at first. Called once.
void backend_set_map_max(struct backend *backend, uint64_t bytes);

// Called about once a second; returns true if it wants to be called again.
bool backend_tick(struct backend *backend);

// All its files must be closed. NULL is allowed.
void backend_free(struct backend *backend);

struct file_open_options {
    bool read_only;
    // O_DIRECT: bypasses the host's page cache; any alignment still works.
    bool direct;
    // FILE_DATASYNC completes at once, and nothing is durable (cache=unsafe).
    bool no_flush;
    // With read_only: takes no locks, and others may write meanwhile.
    bool force_share;
    // Use of the image locks that QEMU's tools understand (file_lock.h).
    enum file_locking locking;
    file_locking_warn *warn; // may be NULL
    void *context;           // of warn
};

// Opens a regular file or block device that exists; the name is its path, also behind "file:" or
// "host_device:". Returns 0 and sets *out, which file_close frees; or a negative errno with a
// message. Blocks as open(2) does.
int backend_open_file(struct backend *backend, const char *name,
                      const struct file_open_options *options, struct file **out,
                      struct error *err);

#endif
