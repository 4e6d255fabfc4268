// SPDX-License-Identifier: Apache-2.0
// cmd.h: the subcommands, and the code for command lines that they share.
#ifndef LAZYCOW_SERVER_CMD_H
#define LAZYCOW_SERVER_CMD_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/runq.h"
#include "server/file_locking.h"

// Each subcommand gets its own name as argv[0] and returns the exit code of the process.
int cmd_serve(int argc, char **argv);
int cmd_create(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_check(int argc, char **argv);

// Prints "lazycow: MESSAGE" on standard error and returns 1.
__attribute__((format(printf, 1, 2))) int cmd_fail(const char *format, ...);

// Reports wrong use of a command in one line that points at its --help. Returns 1.
__attribute__((format(printf, 2, 3))) int cmd_wrong_use(const char *command, const char *format,
                                                        ...);

// Reports an option that getopt_long refused. answer is its return value, '?' or ':', with opterr 0
// and a list of letters that begins with ':', maybe behind a '-'. Returns 1.
struct option;
int cmd_wrong_option(const char *command, int answer, int argc, char **argv,
                     const struct option *options);

// Flushes standard output. Returns 0, or a negative errno with a message if any of it could not be
// written.
int cmd_flush_output(void);

// Prints indented JSON and a newline on standard output. Returns as cmd_flush_output().
int cmd_print_json(const json_t *json);

// Parses a size in bytes as qemu-img does: a number, decimal with an optional fraction or
// hexadecimal, with an optional suffix b, k, M, G, T, P or E (powers of 1024, either case). Returns
// false for anything else, and above INT64_MAX.
bool cmd_parse_size(const char *text, uint64_t *size);

// Finds the next "name=value" of a comma-separated list as -o takes it; a comma in a value is
// doubled. Cuts *rest, which must be writable, and sets *name and *value (NULL without '=').
// Returns false at the end of the list.
bool cmd_next_option(char **rest, char **name, char **value);

// Parses --output human|json of a command. Returns false, with a message, for anything else.
bool cmd_parse_output(const char *command, const char *text, bool *json);

// Parses --locking auto|on|off. Returns false, with a message, for anything else.
bool cmd_parse_locking(const char *command, const char *text, enum file_locking *locking);

// Returns the only argument behind the options of a command; NULL, with a message, if there is none
// or several.
const char *cmd_one_image(int argc, char **argv, const char *command);

// Returns a new JSON string; bytes that are not UTF-8 become '?'.
json_t *cmd_json_text(const char *text);

// The one file of an offline command, with the run queue and the backend that it runs on.
struct cmd_file {
    struct runq runq;
    struct backend *backend;
    struct file *file;
};

enum cmd_access {
    CMD_READ,        // shared with other readers
    CMD_READ_SHARED, // without locks (--force-share)
    CMD_WRITE,       // alone
};

// Opens an existing file. Returns 0, or a negative errno with a message; then nothing is open.
int cmd_open(struct cmd_file *cf, const char *path, enum cmd_access access,
             enum file_locking locking, struct error *err);
void cmd_close(struct cmd_file *cf);

// Returns true if the file begins like a qcow2 image; false, too, if it cannot be read.
bool cmd_is_qcow2(struct file *file);

#endif
