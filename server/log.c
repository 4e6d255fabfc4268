// SPDX-License-Identifier: Apache-2.0
#include "server/log.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// Ten lines in ten seconds tell what goes wrong; more of the same only fill the disk.
#define LOG_LIMIT_LINES 10u
#define LOG_LIMIT_SECONDS 10u

void log_init(struct log *log, enum log_level level, int fd)
{
    *log = (struct log){.level = level, .fd = fd};
}

bool log_level_parse(const char *name, enum log_level *level)
{
    static const char *const names[] = {
        [LOG_LEVEL_ERROR] = "error",
        [LOG_LEVEL_WARNING] = "warning",
        [LOG_LEVEL_INFO] = "info",
        [LOG_LEVEL_DEBUG] = "debug",
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(name, names[i]) == 0) {
            *level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

// Whether a line can be written without waiting.
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

void log_line(struct log *log, enum log_level level, const char *format, ...)
{
    char line[LOG_LINE_MAX];
    size_t length;
    va_list args;
    int n;

    if (level > log->level) {
        return;
    }
    if (log->dropped > 0 && log_writable(log->fd)) {
        n = snprintf(line, sizeof(line), "lazycow: %lu log lines were dropped\n", log->dropped);
        log->dropped = 0;
        log_write(log, line, (size_t)n);
    }

    length = strlen("lazycow: ");
    memcpy(line, "lazycow: ", length);
    va_start(args, format);
    n = vsnprintf(line + length, sizeof(line) - length - 1, format, args);
    va_end(args);
    if (n < 0) {
        return;
    }
    length += (size_t)n;
    if (length > sizeof(line) - 2) {
        length = sizeof(line) - 2; // vsnprintf cut it
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

bool log_limit_pass(struct log_limit *limit, unsigned *skipped)
{
    struct timespec now;
    uint64_t window;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    // Counted from 1, so that a zeroed limit is never in a window.
    window = (uint64_t)now.tv_sec / LOG_LIMIT_SECONDS + 1;
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
