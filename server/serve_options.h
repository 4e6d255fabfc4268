// SPDX-License-Identifier: Apache-2.0
// serve_options.h: the command line of `lazycow serve`.
#ifndef LAZYCOW_SERVER_SERVE_OPTIONS_H
#define LAZYCOW_SERVER_SERVE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/export.h"
#include "server/file_backend.h"
#include "server/log.h"

struct serve_options {
    struct export_options exports;
    const char *socket; // path, or NULL for TCP
    const char *bind;   // host, or NULL for localhost
    uint16_t port;
    bool port_given;
    enum backend_kind aio;
    unsigned connections_max;
    const char *pid_file; // or NULL
    enum log_level log_level;
    char *const *images; // [NAME=]IMAGE
    size_t image_count;
};

enum serve_parse { SERVE_PARSE_RUN, SERVE_PARSE_DONE, SERVE_PARSE_WRONG };

// Fills options from the command line; strings point into argv. SERVE_PARSE_DONE: --help or
// --version was answered; SERVE_PARSE_WRONG: a wrong use, which was reported.
enum serve_parse serve_options_parse(struct serve_options *options, int argc, char **argv);

#endif
