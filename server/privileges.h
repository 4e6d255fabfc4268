// SPDX-License-Identifier: Apache-2.0
// privileges.h: the user and group that the server changes to once everything is open.
#ifndef LAZYCOW_SERVER_PRIVILEGES_H
#define LAZYCOW_SERVER_PRIVILEGES_H

#include <sys/types.h>

#include "qcow2/base/error.h"

struct privileges {
    // The name for messages; NULL: user and group stay unchanged.
    const char *user;
    uid_t uid;
    gid_t gid;
};

// Looks up user and group, names or numbers. Each may be NULL; without a group it is the user's.
// Returns 0, or a negative errno with a message.
int privileges_find(struct privileges *privileges, const char *user, const char *group,
                    struct error *err);

// Looks up a group, a name or a number, that the option gives. Returns 0, or a negative errno with
// a message.
int privileges_group(const char *option, const char *group, gid_t *gid, struct error *err);

// Changes to the user and group, for good and in all threads. Returns 0, or a negative errno with a
// message.
int privileges_drop(const struct privileges *privileges, struct error *err);

#endif
