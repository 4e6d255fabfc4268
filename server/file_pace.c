// SPDX-License-Identifier: Apache-2.0
#include "server/file_pace.h"

#include <time.h>

// A slow write: longer than the usual time slice of another process on a busy core, and short
// enough to go unnoticed by clients that count in milliseconds.
#define SLOW_WRITE_NS 3000000ull
#define QUICK_WRITE_NS 200000ull     // three times what the largest inline write takes
#define PENALTY_MIN_NS 20000000ull   // short: a busy core makes a quick write look slow too
#define PENALTY_MAX_NS 2000000000ull // one slow call in 2 s is below one request in a thousand
#define PENALTY_FORGET_NS 1000000000ull

// A barrier that takes longer gains little by not going through a worker, which costs some 50 us.
#define QUICK_SYNC_NS 1000000ull
// More than this takes a disk longer to write than the way through a worker takes.
#define SYNC_DIRTY_MAX (256u << 10)

uint64_t pace_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

uint64_t pace_penalty(uint64_t last, bool soon)
{
    if (!soon || last == 0)
        return PENALTY_MIN_NS;
    return last < PENALTY_MAX_NS / 2 ? last * 2 : PENALTY_MAX_NS;
}

bool write_pace_allows(const struct write_pace *pace)
{
    if (!pace->offloading)
        return true;
    return pace->worker_latency <= SLOW_WRITE_NS && pace_now() >= pace->retry_at;
}

void write_pace_note(struct write_pace *pace, uint64_t took, uint64_t turn_ns)
{
    uint64_t now = pace_now();

    // Slow is also the last of many in a turn that took that long together, when it was not quick
    // itself: other files' writes count in the sum.
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

bool sync_pace_allows(const struct sync_pace *pace)
{
    return pace->latency > 0 && pace->latency <= QUICK_SYNC_NS && pace->dirty <= SYNC_DIRTY_MAX &&
           (pace->penalty == 0 || pace_now() >= pace->retry_at);
}

void sync_pace_note_change(struct sync_pace *pace, uint64_t bytes)
{
    if (__builtin_add_overflow(pace->dirty, bytes, &pace->dirty))
        pace->dirty = UINT64_MAX;
}

void sync_pace_note(struct sync_pace *pace, uint64_t took)
{
    pace->latency = took;
    if (took > QUICK_SYNC_NS) {
        uint64_t now = pace_now();
        bool soon = now < pace->retry_at + PENALTY_FORGET_NS;

        pace->penalty = pace_penalty(pace->penalty, soon);
        pace->retry_at = now + pace->penalty;
    }
}
