// SPDX-License-Identifier: Apache-2.0
// access.h: decides by the identity that TLS proves which exports a peer may use. All others are
// hidden from it: they are not listed, and unknown when asked for.
#ifndef LAZYCOW_SERVER_ACCESS_H
#define LAZYCOW_SERVER_ACCESS_H

#include <stddef.h>

#include "protocol/session.h"
#include "qcow2/base/error.h"
#include "server/export.h"

// One rule for each export that a server can have.
#define ACCESS_RULES_MAX EXPORTS_MAX

struct access_rule {
    // NULL: the rule is for all exports.
    const struct export *export;
    // The rule is for an image that is not served, so it has no effect.
    bool skipped;
    // A pattern of fnmatch(3) for the peer's identity.
    const char *pattern;
};

struct access {
    struct exports *exports;
    struct access_rule *rules;
    size_t count;
};

// Each argument is [NAME:]PATTERN (--tls-allow) and is borrowed. An export with a rule, of its own
// or for all exports, is open to the peers that one of these rules matches; an export without a
// rule is open to everyone. exports is borrowed. Returns 0, or a negative errno with a message.
int access_init(struct access *access, struct exports *exports, const char *const *arguments,
                size_t count, struct error *err);
void access_destroy(struct access *access);

// Adds one more rule. With a name the argument is a PATTERN for the export of that name.
int access_add(struct access *access, const char *name, const char *argument, struct error *err);

// The exports that one peer may use. host goes to the peer's session, which asks it for them.
struct access_view {
    struct session_host host;
    const struct access *access; // borrowed
    // NULL: all exports.
    struct export **visible;
    size_t count; // of visible
};

// access_view_init() makes the view of a peer that has proven no identity yet (tls: the demand of
// its session), access_view_identify() that of a peer with an identity (NULL: without one). Each
// returns 0 or -ENOMEM; after -ENOMEM the peer may use nothing.
int access_view_init(struct access_view *view, const struct access *access, enum session_tls tls);
int access_view_identify(struct access_view *view, const char *identity);
void access_view_destroy(struct access_view *view);

#endif
