// SPDX-License-Identifier: Apache-2.0
// error.h: the one line of text that tells a user the failure, the file and the remedy.
#ifndef LAZYCOW_QCOW2_BASE_ERROR_H
#define LAZYCOW_QCOW2_BASE_ERROR_H

// Longest message in bytes. Two paths of PATH_MAX do not fit and are cut, because a message must
// not fill two screens.
#define ERROR_TEXT_MAX 1024

// A function that fails fills it; a function that succeeds does not touch it. A parameter of this
// type is never NULL.
struct error {
    char text[ERROR_TEXT_MAX];
};

// Writes the message (printf format, no newline at the end) and returns -code, so that a caller can
// write `return error_set(err, EINVAL, "...")`. code is a positive errno value.
__attribute__((format(printf, 3, 4))) int error_set(struct error *err, int code, const char *format,
                                                    ...);

// Inserts "prefix: " before the message.
__attribute__((format(printf, 2, 3))) void error_prefix(struct error *err, const char *format, ...);

// Appends text to the message.
__attribute__((format(printf, 2, 3))) void error_append(struct error *err, const char *format, ...);

#endif
