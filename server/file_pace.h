// SPDX-License-Identifier: Apache-2.0
// file_pace.h: which writes and barriers of a file are made on the loop's own thread. What takes
// microseconds there takes several times as long by way of a worker, which has to be woken and has
// to wake the loop; but the host may hold a call for hundreds of milliseconds, and all connections
// with it. So calls are made on the loop as long as they are quick.
//
// Plain data and rules; the clock is the caller's. Times are nanoseconds of one monotonic clock.
#ifndef LAZYCOW_SERVER_FILE_PACE_H
#define LAZYCOW_SERVER_FILE_PACE_H

#include <stdbool.h>
#include <stdint.h>

// For how long what was slow is left to workers: after 0, or when the last time was not soon before,
// 20 ms; else twice as long as then, at most 2 s.
uint64_t pace_penalty(uint64_t last, bool soon);

// Buffered writes: made on the loop until one is slow. Then workers get them for a while, and one
// write on the loop tries again when workers are quick too. The while doubles each time that this
// fails soon.
struct write_pace {
    bool offloading;
    uint64_t retry_at;       // when writes on the loop are tried again
    uint64_t resumed_at;     // when these last became quick again
    uint64_t penalty;        // how long the last slow write turned them off
    uint64_t worker_latency; // that of the write that a worker ended last
};

bool write_pace_allows(const struct write_pace *pace, uint64_t now);

// Takes in a write on the loop that has just taken so long; all since the last turn took turn_ns.
void write_pace_note(struct write_pace *pace, uint64_t now, uint64_t took, uint64_t turn_ns);

// Barriers take longer than other requests should wait: they are made on the loop only for a client
// that is alone, who waits for them in any case, and where they were quick until now. After one that
// was slow, whoever made it, they are left to workers for a while.
struct sync_pace {
    uint64_t latency;  // of the last barrier; 0: there was none
    uint64_t dirty;    // bytes written, or changed in other ways, since it began
    uint64_t retry_at; // when barriers on the loop are tried again
    uint64_t penalty;  // how long the last slow one turned them off
};

bool sync_pace_allows(const struct sync_pace *pace, uint64_t now);

// So many bytes are about to be changed; UINT64_MAX: nobody knows how many.
void sync_pace_note_change(struct sync_pace *pace, uint64_t bytes);

// Takes in a barrier that has just taken so long.
void sync_pace_note(struct sync_pace *pace, uint64_t now, uint64_t took);

// Copies out of mapped files: made as long as no page of theirs had to be fetched from a disk. After one
// that had to, none are made for a while, which is longer each time that this happens soon again.
struct disk_pace {
    uint64_t asked_at; // when it was last asked whether a page was waited for
    long faults;       // that had to wait for a disk, by then
    uint64_t retry_at; // nothing is copied before that
    uint64_t penalty;  // how long the last wait turned it off
};

bool disk_pace_allows(const struct disk_pace *pace, uint64_t now);

// Whether the faults are to be counted again before the next copy: a system call.
bool disk_pace_asks(const struct disk_pace *pace, uint64_t now);

// Takes in how many there were in all. Returns whether there was none since the last time.
bool disk_pace_note(struct disk_pace *pace, uint64_t now, long faults);

#endif
