// SPDX-License-Identifier: Apache-2.0
#include "server/log.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// Lines of a kind in one window: ten lines in ten seconds show the problem, and more of them only
// fill the disk.
#define LOG_LIMIT_LINES 10u
#define LOG_LIMIT_SECONDS 10u

static bool is_journal(int fd)
{
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat st;
    char own[64];

    // Child processes inherit the variable even if their standard error goes elsewhere.
    if (stream == NULL || fstat(fd, &st) < 0) {
        return false;
    }
    snprintf(own, sizeof(own), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(stream, own) == 0;
}

void log_init(struct log *log, enum log_level level, int fd)
{
    *log = (struct log){.level = level, .fd = fd, .journal = is_journal(fd)};
}

static const char *priority(enum log_level level)
{
    // The priorities of syslog(3).
    static const char *const prefixes[] = {
        [LOG_LEVEL_ERROR] = "<3>", [LOG_LEVEL_WARNING] = "<4>", [LOG_LEVEL_INFO] = "<6>",
        [LOG_LEVEL_DEBUG] = "<7>", [LOG_LEVEL_TRACE] = "<7>",
    };

    return prefixes[level];
}

const char *log_prefix(int fd, enum log_level level)
{
    return is_journal(fd) ? priority(level) : "";
}

bool log_level_parse(const char *name, enum log_level *level)
{
    static const char *const names[] = {
        [LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARNING] = "warning", [LOG_LEVEL_INFO] = "info",
        [LOG_LEVEL_DEBUG] = "debug", [LOG_LEVEL_TRACE] = "trace",
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(name, names[i]) == 0) {
            *level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

// Returns true if a line can be written without waiting.
static bool log_writable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLOUT};

    return poll(&poll_fd, 1, 0) == 1 && (poll_fd.revents & POLLOUT);
}

static void log_write(struct log *log, const char *text, size_t length)
{
    ssize_t n;

    if (!log_writable(log->fd)) {
        log->dropped++;
        return;
    }
    do {
        n = write(log->fd, text, length);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        log->dropped++;
    }
}

// Writes the beginning of a line, which is short. Returns its length.
static size_t log_begin(const struct log *log, enum log_level level, char line[LOG_LINE_MAX])
{
    struct timespec now;
    struct tm utc;
    int n = 0;

    if (log->journal) {
        n = sprintf(line, "%s", priority(level));
    } else if (log->timestamps && clock_gettime(CLOCK_REALTIME, &now) == 0 &&
               gmtime_r(&now.tv_sec, &utc) != NULL) {
        n = (int)strftime(line, LOG_LINE_MAX, "%Y-%m-%dT%H:%M:%S", &utc);
        n += sprintf(line + n, ".%03ldZ ", now.tv_nsec / 1000000);
    }
    return (size_t)(n + sprintf(line + n, "lazycow: "));
}

// Reports the number of dropped lines, if there is room now.
static void log_dropped(struct log *log)
{
    char line[LOG_LINE_MAX];
    size_t length;

    if (log->dropped > 0 && log_writable(log->fd)) {
        length = log_begin(log, LOG_LEVEL_WARNING, line);
        length += (size_t)sprintf(line + length, "%lu log lines were dropped\n", log->dropped);
        log->dropped = 0;
        log_write(log, line, length);
    }
}

void log_line(struct log *log, enum log_level level, const char *format, ...)
{
    char line[LOG_LINE_MAX];
    size_t length;
    va_list args;
    int n;

    if (level > log->level) {
        return;
    }
    log_dropped(log);
    length = log_begin(log, level, line);
    va_start(args, format);
    n = vsnprintf(line + length, sizeof(line) - length - 1, format, args);
    va_end(args);
    if (n < 0) {
        return;
    }
    length += (size_t)n;
    if (length > sizeof(line) - 2) {
        length = sizeof(line) - 2; // vsnprintf has cut the line
    }
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)line[i];

        if (c < 0x20 || c == 0x7f) {
            line[i] = '?';
        }
    }
    line[length++] = '\n';
    log_write(log, line, length);
}

// Returns the number of the current window, from 1 on, so that a zeroed limit is in none.
static uint64_t window_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec / LOG_LIMIT_SECONDS + 1;
}

bool log_limit_pass(struct log_limit *limit, unsigned *skipped)
{
    uint64_t window = window_now();

    if (limit->window != window) {
        limit->window = window;
        limit->lines = 0;
    }
    if (limit->lines == LOG_LIMIT_LINES) {
        limit->skipped++;
        return false;
    }
    limit->lines++;
    *skipped = limit->skipped;
    limit->skipped = 0;
    return true;
}

bool log_limit_rest(struct log_limit *limit, unsigned *skipped)
{
    if (limit->skipped == 0 || limit->window == window_now()) {
        return false;
    }
    *skipped = limit->skipped;
    limit->skipped = 0;
    return true;
}
