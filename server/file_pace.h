// SPDX-License-Identifier: Apache-2.0
// file_pace.h: decides which writes and barriers of a file the loop's own thread makes. A call that
// takes microseconds there takes several times as long through a worker, which has to be woken and
// to wake the loop. But the host may block a call for hundreds of milliseconds, and with it all
// connections. So the loop makes calls as long as they are quick.
//
// Plain data and rules; the caller passes the time. Times are nanoseconds of one monotonic clock.
#ifndef LAZYCOW_SERVER_FILE_PACE_H
#define LAZYCOW_SERVER_FILE_PACE_H

#include <stdbool.h>
#include <stdint.h>

// Returns for how long slow calls are left to workers. last: the penalty before, 0: there was none;
// soon: it ended a short time ago. 20 ms without both, else twice the last one, at most 2 s.
uint64_t pace_penalty(uint64_t last, bool soon);

// Buffered writes are made on the loop until one is slow. Workers get them for a while then, and a
// write on the loop is tried again once workers are quick, too. The while doubles each time that
// the try soon fails.
struct write_pace {
    bool offloading;
    // Time when writes on the loop are tried again.
    uint64_t retry_at;
    // Time when writes on the loop last became quick again.
    uint64_t resumed_at;
    // Duration of the last penalty.
    uint64_t penalty;
    // Duration of the write that a worker ended last.
    uint64_t worker_latency;
};

bool write_pace_allows(const struct write_pace *pace, uint64_t now);

// Takes in the duration of a write on the loop; all writes since the last turn took turn_ns.
void write_pace_note(struct write_pace *pace, uint64_t now, uint64_t took, uint64_t turn_ns);

// Barriers take longer than other requests should wait. The loop makes them only for a client that
// is alone, and so waits for them in any case, and only while they are quick. After a slow one, on
// the loop or on a worker, workers make them for a while.
struct sync_pace {
    // Duration of the last barrier; 0: there was none.
    uint64_t latency;
    // Bytes changed since the last barrier began.
    uint64_t dirty;
    // Time when barriers on the loop are tried again.
    uint64_t retry_at;
    // Duration of the last penalty.
    uint64_t penalty;
};

bool sync_pace_allows(const struct sync_pace *pace, uint64_t now);

// Called before a change of this many bytes; UINT64_MAX: the number is unknown.
void sync_pace_note_change(struct sync_pace *pace, uint64_t bytes);

// Takes in the duration of a barrier.
void sync_pace_note(struct sync_pace *pace, uint64_t now, uint64_t took);

// Copies out of mapped files are made as long as none of their pages has to be fetched from a disk.
// After one that had to wait none are made for a while, longer each time that this happens again
// soon.
struct disk_pace {
    // Time when page faults were last counted.
    uint64_t asked_at;
    // Number of faults that had waited for a disk by then.
    long faults;
    // Time before which nothing is copied.
    uint64_t retry_at;
    // Duration of the last penalty.
    uint64_t penalty;
};

bool disk_pace_allows(const struct disk_pace *pace, uint64_t now);

// Returns true if the faults must be counted before the next copy, which takes a system call.
bool disk_pace_asks(const struct disk_pace *pace, uint64_t now);

// Takes in the total number of faults. Returns true if there was none since the last count.
bool disk_pace_note(struct disk_pace *pace, uint64_t now, long faults);

#endif
