// SPDX-License-Identifier: Apache-2.0
// log.h: lines for the operator on standard error. Writing a line never blocks the loop: if nobody
// reads them (a full pipe), lines are dropped and counted.
#ifndef LAZYCOW_SERVER_LOG_H
#define LAZYCOW_SERVER_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level {
    LOG_LEVEL_ERROR,   // errors that an operator must act on
    LOG_LEVEL_WARNING, // failures after which the server goes on
    LOG_LEVEL_INFO,    // connections, start and stop
    LOG_LEVEL_DEBUG,   // the outcome of negotiations
    LOG_LEVEL_TRACE,   // each request and each stage of a sync
};

// Longest line in bytes, including the newline. Below PIPE_BUF, so that lines of several processes
// on one pipe stay whole.
#define LOG_LINE_MAX 2048

struct log {
    // Lines of a higher value are not written.
    enum log_level level;
    int fd;
    // Lines begin with the level, as the journal reads it (sd-daemon(3)).
    bool journal;
    // Lines begin with the time, unless journal is set; off at first.
    bool timestamps;
    // Lines dropped since the last one that was written.
    unsigned long dropped;
};

void log_init(struct log *log, enum log_level level, int fd);

// Returns the beginning of a line: its priority, such as "<3>", if JOURNAL_STREAM says that the
// descriptor leads to the journal (systemd.exec(5)), else "".
const char *log_prefix(int fd, enum log_level level);

// Parses "error", "warning", "info", "debug" or "trace". Returns false for any other name.
bool log_level_parse(const char *name, enum log_level *level);

// Writes level or time, "lazycow: " and the message (printf format, without a newline at the end).
// Replaces control characters, so that a name chosen by others cannot forge a line.
__attribute__((format(printf, 3, 4))) void log_line(struct log *log, enum log_level level,
                                                    const char *format, ...);

// Limits lines of one kind to a number in a window of time. Must be zeroed before use.
struct log_limit {
    // Number of the current window.
    uint64_t window;
    // Lines that passed in this window.
    unsigned lines;
    // Lines that were held back since the last report.
    unsigned skipped;
};

// Returns true if one more line of this kind may be written now. *skipped is the number of lines
// held back since a line last passed.
bool log_limit_pass(struct log_limit *limit, unsigned *skipped);

// Returns true if lines were held back in a window that is over, so that their number should be
// reported.
bool log_limit_rest(struct log_limit *limit, unsigned *skipped);

#endif
