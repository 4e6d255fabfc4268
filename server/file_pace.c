// SPDX-License-Identifier: Apache-2.0
#include "server/file_pace.h"

// A write that takes this many nanoseconds is slow: longer than the usual time slice of another
// process on a busy core, and short enough to go unnoticed by clients that count in milliseconds.
#define SLOW_WRITE_NS 3000000ull
// Three times the duration of the largest inline write.
#define QUICK_WRITE_NS 200000ull
// Short, because a busy core makes a quick write look slow, too.
#define PENALTY_MIN_NS 20000000ull
// One slow call in 2 s is less than one request in a thousand.
#define PENALTY_MAX_NS 2000000000ull
#define PENALTY_FORGET_NS 1000000000ull

// A barrier that takes longer gains little by avoiding a worker, which costs some 50 us.
#define QUICK_SYNC_NS 1000000ull
// A disk needs longer to write more bytes than this than the detour through a worker takes.
#define SYNC_DIRTY_MAX (256u << 10)

// Nanoseconds between two counts of page faults, each a system call; any disk takes longer.
#define FAULTS_ASKED_NS 100000u

uint64_t pace_penalty(uint64_t last, bool soon)
{
    if (!soon || last == 0)
        return PENALTY_MIN_NS;
    return last < PENALTY_MAX_NS / 2 ? last * 2 : PENALTY_MAX_NS;
}

bool write_pace_allows(const struct write_pace *pace, uint64_t now)
{
    if (!pace->offloading)
        return true;
    return pace->worker_latency <= SLOW_WRITE_NS && now >= pace->retry_at;
}

void write_pace_note(struct write_pace *pace, uint64_t now, uint64_t took, uint64_t turn_ns)
{
    // Slow, too, is the last of many writes of a turn that together took that long, unless it was
    // quick itself: the sum includes writes to other files.
    if (turn_ns > SLOW_WRITE_NS && took > QUICK_WRITE_NS) {
        bool soon = pace->offloading || now - pace->resumed_at < PENALTY_FORGET_NS;

        pace->penalty = pace_penalty(pace->penalty, soon);
        pace->offloading = true;
        pace->worker_latency = 0;
        pace->retry_at = now + pace->penalty;
    } else if (pace->offloading) {
        pace->offloading = false;
        pace->resumed_at = now;
    }
}

bool sync_pace_allows(const struct sync_pace *pace, uint64_t now)
{
    return pace->latency > 0 && pace->latency <= QUICK_SYNC_NS && pace->dirty <= SYNC_DIRTY_MAX &&
           (pace->penalty == 0 || now >= pace->retry_at);
}

void sync_pace_note_change(struct sync_pace *pace, uint64_t bytes)
{
    if (__builtin_add_overflow(pace->dirty, bytes, &pace->dirty))
        pace->dirty = UINT64_MAX;
}

void sync_pace_note(struct sync_pace *pace, uint64_t now, uint64_t took)
{
    pace->latency = took;
    if (took > QUICK_SYNC_NS) {
        bool soon = now < pace->retry_at + PENALTY_FORGET_NS;

        pace->penalty = pace_penalty(pace->penalty, soon);
        pace->retry_at = now + pace->penalty;
    }
}

bool disk_pace_allows(const struct disk_pace *pace, uint64_t now)
{
    return now >= pace->retry_at;
}

bool disk_pace_asks(const struct disk_pace *pace, uint64_t now)
{
    return now - pace->asked_at >= FAULTS_ASKED_NS;
}

bool disk_pace_note(struct disk_pace *pace, uint64_t now, long faults)
{
    pace->asked_at = now;
    if (faults == pace->faults) {
        return true;
    }
    pace->faults = faults;
    pace->penalty = pace_penalty(pace->penalty, now - pace->retry_at < pace->penalty);
    pace->retry_at = now + pace->penalty;
    return false;
}
