// SPDX-License-Identifier: Apache-2.0
// file_map.h: reads of what is in the host's page cache, out of a mapping of the file: as a loan of the
// bytes where they are, or copied, for less than half of what the same bytes cost by way of a system
// call. Files are mapped in windows, where they are read often; which pages of a window are in memory is
// asked when it is mapped, and now and then. What is not in memory is left to the caller, who can wait
// for it.
//
// Three dangers, and what is done about each:
//  - A page that has left memory since makes the thread wait for the disk. After that, reads are left to
//    the caller for a while.
//  - A file that somebody cut, or a disk that cannot read, ends the process (SIGBUS). Copies are guarded
//    (file_guarded_copy.h), and a loan is only for system calls, which fail.
//  - Pages that are mapped count as this process's memory. There is a limit, and windows that are not
//    used are unmapped.
//
// For files that only this process writes: what others write is seen at once on a local file system,
// but not on every other.
//
// For the one thread that owns the backend.
#ifndef LAZYCOW_SERVER_FILE_MAP_H
#define LAZYCOW_SERVER_FILE_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/file.h"
#include "qcow2/base/runq.h"
#include "server/file_pace.h"

// Bytes of one window: what one page of the processor's tables covers.
#define FILE_MAP_WINDOW_BYTES (2u << 20)
// Most windows of all files, whatever the limit in bytes: each, and what is between two, is one
// of the mappings of which a process may have 65530 by default.
#define FILE_MAP_WINDOWS_MAX 16384u

struct map_window;

struct file_map {
    struct task task;           // unmaps what is not used, a little at a time
    struct runq *runq;          // borrowed
    struct map_window *windows; // a place for each; NULL: nothing is ever mapped
    uint32_t count;
    char *base;      // memory for each, set aside, one behind the other
    uint32_t mapped; // of these
    // Mapping has failed, and what was set aside may be somebody else's: nothing more is mapped.
    bool broken;
    uint32_t sweep;      // the place that the task looks at next
    uint64_t loan_bytes; // that were not returned
    bool used;           // something was read since the last tick
    bool idle;           // nothing was between the two before, and until now
    struct disk_pace pace;
};

// At first nothing is mapped. runq is borrowed and outlives the map.
void file_map_init(struct file_map *map, struct runq *runq);

// From now on up to so many bytes, rounded down to windows, may be mapped, and no more than a quarter
// of the process's address space where that is limited. To be called once. Without memory for that,
// none are.
void file_map_set_limit(struct file_map *map, uint64_t bytes);

void file_map_destroy(struct file_map *map);

// Copies what the read, of a regular file, wants. Returns false when not all of it is in memory, as
// far as known; then buffers may hold part of it.
bool file_map_read(struct file_map *map, int fd, const struct file_io *io);

// As file_map_read, but returns where the bytes are, or NULL. They stay there until they are returned,
// which may be in other pieces.
const void *file_map_loan_take(struct file_map *map, int fd, const struct file_io *io);
// Copies some bytes of a loan; reads them again where the file was cut. Returns false when they cannot be
// read. May wait for a disk.
bool file_map_loan_copy(struct file_map *map, void *to, const void *from, size_t bytes);
void file_map_loan_return(struct file_map *map, const void *at, uint64_t bytes);

// The read was not copied from here: where many are not, a window is mapped, or asked for again.
void file_map_missed(struct file_map *map, int fd, const struct file_io *io);

// To be called before the descriptor is closed.
void file_map_forget(struct file_map *map, int fd);

// About once a second: what was not used for long is unmapped soon; and everything, when nothing was
// used since the last time. Returns whether anything is mapped.
bool file_map_tick(struct file_map *map);

#endif
