// SPDX-License-Identifier: Apache-2.0
// error.h: the one line of text that tells a user what failed, on which file, and what to do.
#ifndef LAZYCOW_QCOW2_BASE_ERROR_H
#define LAZYCOW_QCOW2_BASE_ERROR_H

// Longest message: two paths of PATH_MAX would be cut, which is better than a message of two
// screens.
#define ERROR_TEXT_MAX 1024

// Filled by a function that fails; untouched by one that succeeds. Never NULL where a parameter
// asks for it.
struct error {
    char text[ERROR_TEXT_MAX];
};

// Writes the message (printf format, no newline at the end) and returns -code, so that a caller can
// say `return error_set(err, EINVAL, "...")`. code is a positive errno value.
__attribute__((format(printf, 3, 4))) int error_set(struct error *err, int code, const char *format,
                                                    ...);

// Puts "prefix: " before the message that is there.
__attribute__((format(printf, 2, 3))) void error_prefix(struct error *err, const char *format, ...);

// Puts more text behind the message that is there.
__attribute__((format(printf, 2, 3))) void error_append(struct error *err, const char *format, ...);

#endif
