// SPDX-License-Identifier: Apache-2.0
// serve_options.h: the command line of `lazycow serve`.
#ifndef LAZYCOW_SERVER_SERVE_OPTIONS_H
#define LAZYCOW_SERVER_SERVE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/export.h"
#include "server/export_argument.h"
#include "server/file_backend.h"
#include "server/keepalive.h"
#include "server/log.h"
#include "server/serve_listen.h"
#include "server/tls.h"

// Patterns of --tls-allow; more than fit in a command line that someone understands.
#define SERVE_TLS_ALLOW_MAX 256u
// Settings of single exports: four for each of as many as there may be.
#define SERVE_SETS_MAX 4096u
// A connection takes about 200 KiB when idle; beyond this the descriptors of a process run out on
// common systems.
#define SERVE_CONNECTIONS_LIMIT 16384

enum serve_tls { SERVE_TLS_REQUIRE, SERVE_TLS_ON, SERVE_TLS_OFF };

// A rule of --tls-allow.
struct serve_tls_allow {
    const char *name; // of the export; NULL: the text may begin with one
    const char *text;
};

struct serve_options {
    struct export_options exports;
    struct serve_listen listen;
    struct keepalive keepalive;
    bool skip_broken; // images that cannot be opened are left out
    enum backend_kind aio;
    unsigned connections_max;
    uint64_t poll_max_ns;
    uint64_t mmap_bytes;
    bool exit_with_last_client;
    struct tls_options tls; // neither certificates nor psk: there is no TLS
    enum serve_tls tls_mode;
    bool tls_given; // --tls was
    struct serve_tls_allow tls_allow[SERVE_TLS_ALLOW_MAX];
    size_t tls_allow_count;
    const char *user;     // or NULL
    const char *group;    // or NULL
    const char *pid_file; // or NULL
    enum log_level log_level;
    bool log_timestamps;
    const char *sets[SERVE_SETS_MAX]; // NAME:KEY=VALUE
    size_t set_count;
    // In the order of the command line; those beyond the room are counted only.
    struct export_argument images[EXPORTS_MAX];
    size_t image_count;
};

// One option of the command line.
struct serve_setting {
    const char *name; // NULL ends the table
    char letter;      // 0: none
    bool (*set)(struct serve_options *options, const char *value);
    const char *allowed; // the values it takes, for messages; NULL: the option takes none
};

extern const struct serve_setting serve_settings[];

// The defaults.
void serve_options_init(struct serve_options *options);

void serve_options_add_image(struct serve_options *options, enum export_argument_kind kind,
                             const char *text);

// How that is done for which qemu-nbd has the option, of this letter or a word that begins with "--";
// NULL for other options.
const char *serve_elsewhere(const char *word, int letter);

// What --help prints (cmd_serve_help.c).
extern const char serve_help[];

// Whether the options go together (cmd_serve_check.c); reports what does not.
bool serve_options_check(const struct serve_options *options);

// The same for those of TLS, when all rules are known.
bool serve_options_check_tls(const struct serve_options *options);

enum serve_parse { SERVE_PARSE_RUN, SERVE_PARSE_DONE, SERVE_PARSE_WRONG };

// Fills options from the command line; strings point into argv. SERVE_PARSE_DONE: --help or
// --version was answered; SERVE_PARSE_WRONG: a wrong use, which was reported.
enum serve_parse serve_options_parse(struct serve_options *options, int argc, char **argv);

#endif
