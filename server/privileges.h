// SPDX-License-Identifier: Apache-2.0
// privileges.h: who the server runs as once everything is open.
#ifndef LAZYCOW_SERVER_PRIVILEGES_H
#define LAZYCOW_SERVER_PRIVILEGES_H

#include <sys/types.h>

#include "qcow2/base/error.h"

struct privileges {
    const char *user; // for messages; NULL: stay who we are
    uid_t uid;
    gid_t gid;
};

// Looks user and group up, names or numbers; each may be NULL, the group is the user's then.
// Returns 0, or a negative errno with a message.
int privileges_find(struct privileges *privileges, const char *user, const char *group,
                    struct error *err);

// Looks up a group, a name or a number, that the option gives. Returns 0, or a negative errno with a
// message.
int privileges_group(const char *option, const char *group, gid_t *gid, struct error *err);

// Becomes that user and group, for good, in all threads. Returns 0, or a negative errno with a
// message.
int privileges_drop(const struct privileges *privileges, struct error *err);

#endif
