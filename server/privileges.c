// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // setresuid
#include "server/privileges.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Parses a decimal number that fits an id. The largest is refused: it means "unchanged" to the
// kernel.
static bool parse_id(const char *text, unsigned *id)
{
    unsigned long value;
    char *end;

    if (text[0] < '0' || text[0] > '9') {
        return false;
    }
    errno = 0;
    value = strtoul(text, &end, 10);
    if (*end != '\0' || errno != 0 || value >= UINT32_MAX) {
        return false;
    }
    *id = (unsigned)value;
    return true;
}

int privileges_group(const char *option, const char *group, gid_t *gid, struct error *err)
{
    const struct group *entry = getgrnam(group);

    if (entry != NULL) {
        *gid = entry->gr_gid;
    } else if (!parse_id(group, gid)) {
        return error_set(err, EINVAL, "%s '%s': there is no such group", option, group);
    }
    return 0;
}

int privileges_find(struct privileges *privileges, const char *user, const char *group,
                    struct error *err)
{
    *privileges = (struct privileges){.uid = getuid(), .gid = getgid()};
    if (user != NULL) {
        const struct passwd *entry = getpwnam(user);

        privileges->user = user;
        if (entry != NULL) {
            privileges->uid = entry->pw_uid;
            privileges->gid = entry->pw_gid;
        } else if (!parse_id(user, &privileges->uid)) {
            return error_set(err, EINVAL, "--user '%s': there is no such user", user);
        } else if ((entry = getpwuid(privileges->uid)) != NULL) {
            privileges->gid = entry->pw_gid;
        } else if (group == NULL) {
            return error_set(err, EINVAL, "--user %s: has no group; give one with --group", user);
        }
    }
    if (group != NULL) {
        privileges->user = user != NULL ? user : group;
        return privileges_group("--group", group, &privileges->gid, err);
    }
    return 0;
}

int privileges_drop(const struct privileges *privileges, struct error *err)
{
    if (privileges->user == NULL) {
        return 0;
    }
    // Groups first, because the new user may not change them.
    if ((geteuid() == 0 && setgroups(0, NULL) < 0) ||
        setresgid(privileges->gid, privileges->gid, privileges->gid) < 0 ||
        setresuid(privileges->uid, privileges->uid, privileges->uid) < 0) {
        return error_set(err, errno, "cannot become user or group '%s': %s; that needs root",
                         privileges->user, strerror(errno));
    }
    return 0;
}
