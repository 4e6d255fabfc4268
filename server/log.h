// SPDX-License-Identifier: Apache-2.0
// log.h: lines for the operator on standard error. A line is never allowed to stop the loop: where
// nobody takes them (a full pipe) lines are dropped, and counted.
#ifndef LAZYCOW_SERVER_LOG_H
#define LAZYCOW_SERVER_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level {
    LOG_LEVEL_ERROR,   // something an operator must act on
    LOG_LEVEL_WARNING, // something that failed, and the server goes on
    LOG_LEVEL_INFO,    // connections, start and stop
    LOG_LEVEL_DEBUG,   // what was negotiated
    LOG_LEVEL_TRACE,   // each request and each stage of a sync
};

// Longest line in bytes, the newline included. Below PIPE_BUF, so that lines of several processes
// on one pipe stay whole.
#define LOG_LINE_MAX 2048

struct log {
    enum log_level level; // lines above it are not written
    int fd;
    bool journal;          // begin with the level, as the journal reads it (sd-daemon(3))
    bool timestamps;       // else begin with the time; off unless set
    unsigned long dropped; // lines since the last one that was written
};

void log_init(struct log *log, enum log_level level, int fd);

// The beginning of a line: its priority, such as "<3>", where the descriptor leads to the journal as
// JOURNAL_STREAM says (systemd.exec(5)), and nothing elsewhere.
const char *log_prefix(int fd, enum log_level level);

// "error", "warning", "info", "debug" or "trace"; false for any other name.
bool log_level_parse(const char *name, enum log_level *level);

// Writes level or time, "lazycow: " and the message (printf format, no newline at the end). Control characters are
// replaced, so that a name chosen by others cannot forge a line.
__attribute__((format(printf, 3, 4))) void log_line(struct log *log, enum log_level level,
                                                    const char *format, ...);

// A limit on lines of one kind: so many in a window of time. Zero it before use.
struct log_limit {
    uint64_t window;  // number of the current window
    unsigned lines;   // passed in it
    unsigned skipped; // not passed since the last report
};

// Whether one more line of this kind may be written now. *skipped tells how many were left out
// since a line last passed.
bool log_limit_pass(struct log_limit *limit, unsigned *skipped);

// Whether lines were left out of a window that is over, so that it is time to tell how many.
bool log_limit_rest(struct log_limit *limit, unsigned *skipped);

#endif
