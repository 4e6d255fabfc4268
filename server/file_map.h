// SPDX-License-Identifier: Apache-2.0
// file_map.h: reads of what is in the host's page cache, out of a mapping of the file: lent, to who
// can do with that, or copied, for less than half of what the same bytes cost by way of a system call.
// Files are mapped in windows, where they are read often; which pages of a window are in memory is
// asked when it is mapped, and now and then. What is not in memory is left to the caller, who can wait
// for it.
//
// Three things could go wrong, and do not: a page that has left memory since would make the thread
// wait for the disk: when that happens, reads are left to the caller for a while. A file that somebody
// cut, or a disk that cannot read, would end the process (SIGBUS): copies are guarded
// (guarded_copy.h), and what is lent is for system calls, which fail. And
// pages that are mapped count as this process's memory: there is a limit, and what is not used is
// unmapped.
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
#define MAP_WINDOW_BYTES (2u << 20)
// Most windows of all files, whatever the limit in bytes: each, and what is between two, is one
// of the mappings of which a process may have 65530 by default.
#define MAP_WINDOWS_MAX 16384u

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
    uint32_t sweep; // the place that the task looks at next
    uint64_t lent;  // bytes that were not given back
    bool used;      // something was read since the last tick
    bool idle;      // nothing was between the two before, and until now
    struct disk_pace pace;
};

// At first nothing is mapped. runq is borrowed and outlives the map.
void map_init(struct file_map *map, struct runq *runq);

// From now on up to so many bytes, rounded down to windows, may be mapped, and no more than a quarter
// of the process's address space where that is limited. To be called once. Without memory for that,
// none are.
void map_set_limit(struct file_map *map, uint64_t bytes);

void map_destroy(struct file_map *map);

// Copies what the read, of a regular file, wants. Returns false when not all of it is in memory, as
// far as known; then buffers may hold part of it.
bool map_read(struct file_map *map, int fd, const struct file_io *io);

// As map_read, but returns where the bytes are, or NULL. They stay there until they are given back;
// that may be in other pieces.
const void *map_lend(struct file_map *map, int fd, const struct file_io *io);
// Copies some of what is lent; reads it again where the file was cut. Returns false when it cannot be
// read. May wait for a disk.
bool map_copy_lent(struct file_map *map, void *to, const void *lent, size_t bytes);
void map_give_back(struct file_map *map, const void *lent, uint64_t bytes);

// The read was not copied from here: where many are not, a window is mapped, or asked for again.
void map_missed(struct file_map *map, int fd, const struct file_io *io);

// To be called before the descriptor is closed.
void map_forget(struct file_map *map, int fd);

// About once a second: what was not used for long is unmapped soon; and everything, when nothing was
// used since the last time. Returns whether anything is mapped.
bool map_tick(struct file_map *map);

#endif
