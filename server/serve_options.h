// SPDX-License-Identifier: Apache-2.0
// serve_options.h: the command line of `lazycow serve`.
#ifndef LAZYCOW_SERVER_SERVE_OPTIONS_H
#define LAZYCOW_SERVER_SERVE_OPTIONS_H

#include <stdbool.h>

#include "server/export_argument.h"
#include "server/serve_settings.h"

// One option of the command line.
struct serve_setting {
    const char *name; // NULL ends the table
    char letter;      // 0: none
    bool (*set)(struct serve_options *options, const char *value);
    const char *allowed; // the values it takes, for messages; NULL: it takes none
};

extern const struct serve_setting serve_settings[];

// The defaults.
void serve_options_init(struct serve_options *options);

void serve_options_add_image(struct serve_options *options, enum export_argument_kind kind,
                             const char *text);

// Returns advice about an option of qemu-nbd that lazycow does not have, given by its letter or by
// a word that begins with "--"; NULL for other options.
const char *serve_elsewhere(const char *word, int letter);

// The text of --help (cmd_serve_help.c).
extern const char serve_help[];

// Returns true if the options go together (cmd_serve_check.c); reports those that do not.
bool serve_options_check(const struct serve_options *options);

// As serve_options_check(), for the options of TLS. Called when all access rules are known.
bool serve_options_check_tls(const struct serve_options *options);

enum serve_parse { SERVE_PARSE_RUN, SERVE_PARSE_DONE, SERVE_PARSE_WRONG };

// Fills options from the command line; strings point into argv. SERVE_PARSE_DONE: --help or
// --version was answered; SERVE_PARSE_WRONG: wrong use was reported.
enum serve_parse serve_options_parse(struct serve_options *options, int argc, char **argv);

#endif
