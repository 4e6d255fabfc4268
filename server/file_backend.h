// SPDX-License-Identifier: Apache-2.0
// file_backend.h: local files and block devices as struct file (qcow2/base/file.h), over io_uring or
// over threads. A backend belongs to one thread, the one that owns the run queue, and to the
// process that made it (make it after any fork).
//
// What the owner's loop does: poll backend_fd for readability, and before it sleeps call
// backend_turn and drain the run queue until both have nothing left to do. backend_turn leaves
// nothing behind that could not wake the loop through backend_fd.
#ifndef LAZYCOW_SERVER_FILE_BACKEND_H
#define LAZYCOW_SERVER_FILE_BACKEND_H

#include <stdbool.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/runq.h"
#include "server/file_locking.h"

struct backend;

enum backend_kind {
    BACKEND_AUTO, // io_uring where the kernel and the container allow it, else threads
    BACKEND_IO_URING,
    BACKEND_THREADS,
};

// runq is borrowed and outlives the backend. Returns NULL with a message when that kind cannot be
// had; BACKEND_AUTO only fails where threads cannot be started either.
struct backend *backend_new(enum backend_kind kind, struct runq *runq, struct error *err);

// Has the kernel start what requests may need later, before anything is served but after privileges
// were dropped, which threads of the kernel would keep. No request may be outstanding. Returns 0, or
// a negative errno with a message that names the limit.
int backend_prepare(struct backend *backend, struct error *err);

// Which one BACKEND_AUTO became: "io_uring" or "threads".
const char *backend_name(const struct backend *backend);

// Readable when a turn would find something completed. Owned by the backend: do not read it.
int backend_fd(const struct backend *backend);

// Submits what was queued since the last turn, in one system call where possible, and posts what
// completed to the run queue. Never blocks. Makes no system call when there is nothing to do.
void backend_turn(struct backend *backend);

// Whether whoever waits for what is submitted next is the only one to wait for anything: then it may
// take a few hundred microseconds before submit returns. At first it is not so.
void backend_set_alone(struct backend *backend, bool alone);

// Whether the thread was held up in that way since the last call. Who came meanwhile was not alone.
bool backend_has_blocked(struct backend *backend);

// What is read often and in the host's page cache may be mapped, up to so many bytes of all files;
// at first 0. To be called once.
void backend_set_map_max(struct backend *backend, uint64_t bytes);

// To be called about once a second; returns whether it wants to be called again.
bool backend_tick(struct backend *backend);

// All its files must be closed. NULL is allowed.
void backend_free(struct backend *backend);

struct file_open_options {
    bool read_only;
    bool direct;      // O_DIRECT: past the host's page cache; any alignment still works
    bool no_flush;    // FILE_DATASYNC completes at once, nothing is durable (cache=unsafe)
    bool force_share; // with read_only: others may write meanwhile; takes no locks
    // The image locks that QEMU's tools understand (file_lock.h).
    enum file_locking locking;
    file_locking_warn *warn; // may be NULL
    void *context;           // of warn
};

// Opens a regular file or block device that exists; the name is its path, also behind "file:" or
// "host_device:". Returns 0 and sets *out, which file_close
// frees; or a negative errno with a message. Blocks as open(2) does.
int backend_open_file(struct backend *backend, const char *name,
                      const struct file_open_options *options, struct file **out,
                      struct error *err);

#endif
