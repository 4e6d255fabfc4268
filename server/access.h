// SPDX-License-Identifier: Apache-2.0
// access.h: which exports a peer may use, by who TLS says it is. An export that it may not use is
// hidden: it is not listed, and unknown when asked for.
#ifndef LAZYCOW_SERVER_ACCESS_H
#define LAZYCOW_SERVER_ACCESS_H

#include <stddef.h>

#include "protocol/session.h"
#include "qcow2/base/error.h"
#include "server/export.h"

// Rules of one server: as many as it may have exports.
#define ACCESS_RULES_MAX EXPORTS_MAX

struct access_rule {
    const struct export *export; // NULL: for all
    bool skipped;                // for an image that is not served, so for nothing
    const char *pattern;         // fnmatch(3), of an identity
};

struct access {
    struct exports *exports;
    struct access_rule *rules;
    size_t count;
};

// Each argument is [NAME:]PATTERN (--tls-allow); they are borrowed. An export may be used by whom a
// rule for it or a rule for all matches, and by everyone if there is no such rule. exports is
// borrowed. Returns 0, or a negative errno with a message.
int access_init(struct access *access, struct exports *exports, const char *const *arguments,
                size_t count, struct error *err);
void access_destroy(struct access *access);

// Adds one more rule. With a name the argument is a PATTERN for the export of that name.
int access_add(struct access *access, const char *name, const char *argument, struct error *err);

// The exports that one peer may use. host is what its session gets, and asks for them.
struct access_view {
    struct session_host host;
    const struct access *access; // borrowed
    struct export **visible;     // NULL: all
    size_t count;                // of visible
};

// The view of a peer that has not said who it is (tls: what its session demands), and of one with
// this identity (NULL: none). Each returns 0 or -ENOMEM; nobody is let in then.
int access_view_init(struct access_view *view, const struct access *access, enum session_tls tls);
int access_view_identify(struct access_view *view, const char *identity);
void access_view_destroy(struct access_view *view);

#endif
