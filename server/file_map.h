// SPDX-License-Identifier: Apache-2.0
// file_map.h: serves reads of data in the host's page cache out of a mapping of the file, as a loan
// or as a copy, for less than half of the cost of a system call. Files are mapped in windows in the
// places that are read often. The kernel is asked which pages of a window are in memory when the
// window is mapped, and now and then. All other reads are left to the caller, who can wait for a
// disk.
//
// There are three dangers:
//
// - A page may have left memory since the kernel was asked, so the thread waits for a disk. After
//   that, reads are left to the caller for a while.
// - A file that somebody truncated, or a failing disk, ends the process by SIGBUS. Copies are
//   guarded (file_guarded_copy.h), and a loan is read only by system calls, which fail instead.
// - Mapped pages count as this process's memory. There is a limit, and unused windows are unmapped.
//
// Only for files that no other process writes: a mapping shows the writes of others at once on a
// local file system, but not on every file system.
//
// Belongs to the thread that owns the backend.
#ifndef LAZYCOW_SERVER_FILE_MAP_H
#define LAZYCOW_SERVER_FILE_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/file.h"
#include "qcow2/base/runq.h"
#include "server/file_pace.h"

// Bytes of one window: the reach of one page of the processor's page tables.
#define FILE_MAP_WINDOW_BYTES (2u << 20)
// Most windows of all files, under any limit in bytes: each window, and each gap between two, is
// one of the mappings of which a process may have 65530 by default.
#define FILE_MAP_WINDOWS_MAX 16384u

struct map_window;

struct file_map {
    // Unmaps unused windows, a few in each turn.
    struct task task;
    struct runq *runq; // borrowed
    // Places for windows; NULL: nothing is ever mapped.
    struct map_window *windows;
    uint32_t count;
    // Reserved address space for all places, in order.
    char *base;
    uint32_t mapped; // number of windows that are mapped
    // Mapping has failed, and the reserved addresses may be in use elsewhere: nothing more is
    // mapped.
    bool broken;
    // Place that the task checks next.
    uint32_t sweep;
    // Bytes on loan.
    uint64_t loan_bytes;
    // A read was served since the last tick.
    bool used;
    // No read was served between the last two ticks, nor since.
    bool idle;
    struct disk_pace pace;
};

// At first nothing is mapped. runq is borrowed and outlives the map.
void file_map_init(struct file_map *map, struct runq *runq);

// Allows mapping up to this many bytes, rounded down to windows, and at most a quarter of the
// process's address space if that is limited. Called once. Without memory for the table nothing is
// mapped.
void file_map_set_limit(struct file_map *map, uint64_t bytes);

void file_map_destroy(struct file_map *map);

// Copies the bytes of a read of a regular file. Returns false if not all of them are known to be in
// memory; the buffers may then hold part of them.
bool file_map_read(struct file_map *map, int fd, const struct file_io *io);

// As file_map_read, but makes a loan: returns the address of the bytes, or NULL. They stay there
// until they are returned, which may happen in other pieces.
const void *file_map_loan_take(struct file_map *map, int fd, const struct file_io *io);
// Copies some bytes of a loan; reads them again if the file was truncated. Returns false when they
// cannot be read. May wait for a disk.
bool file_map_loan_copy(struct file_map *map, void *to, const void *from, size_t bytes);
void file_map_loan_return(struct file_map *map, const void *at, uint64_t bytes);

// Takes in a read that was not served from here. After many, the window is mapped or asked again.
void file_map_missed(struct file_map *map, int fd, const struct file_io *io);

// Called before the descriptor is closed.
void file_map_forget(struct file_map *map, int fd);

// Called about once a second: unmaps windows that were unused for long, and all of them if nothing
// was used since the last call. Returns true if anything is mapped.
bool file_map_tick(struct file_map *map);

#endif
