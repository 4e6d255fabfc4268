// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // asprintf
#include "server/storage.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

// Most devices stacked on each other: more than anybody uses, and an end if sysfs has a cycle.
#define STORAGE_DEPTH_MAX 16u

struct storage storage_of(const struct stat *st)
{
    if (S_ISBLK(st->st_mode)) {
        return (struct storage){.block_device = true, .device = st->st_rdev};
    }
    return (struct storage){.device = st->st_dev, .inode = st->st_ino};
}

bool storage_same(const struct storage *a, const struct storage *b)
{
    return a->block_device == b->block_device && a->device == b->device && a->inode == b->inode;
}

// Reads the first line of a file of sysfs. Returns false if there is none.
static bool read_line(const char *directory, const char *name, char line[PATH_MAX])
{
    char *path;
    FILE *file;
    bool found;

    if (asprintf(&path, "%s/%s", directory, name) < 0) {
        return false;
    }
    file = fopen(path, "re");
    free(path);
    if (file == NULL) {
        return false;
    }
    found = fgets(line, PATH_MAX, file) != NULL;
    fclose(file);
    if (found) {
        line[strcspn(line, "\n")] = '\0';
    }
    return found;
}

static bool lies_on(const struct storage *upper, const struct storage *lower, unsigned depth);

// Returns true if a device that sysfs names as MAJOR:MINOR is the lower one or lies on it.
static bool device_leads_to(const char *directory, const char *name, const struct storage *lower,
                            unsigned depth)
{
    char line[PATH_MAX];
    unsigned major_number;
    unsigned minor_number;

    if (!read_line(directory, name, line) ||
        sscanf(line, "%u:%u", &major_number, &minor_number) != 2) {
        return false;
    }
    const struct storage found = {.block_device = true,
                                  .device = makedev(major_number, minor_number)};
    return storage_same(&found, lower) || lies_on(&found, lower, depth + 1);
}

static bool loop_leads_to(const char *directory, const struct storage *lower, unsigned depth)
{
    char line[PATH_MAX];
    struct stat st;

    if (!read_line(directory, "loop/backing_file", line) || stat(line, &st) < 0) {
        return false;
    }
    const struct storage found = storage_of(&st);
    return storage_same(&found, lower) || lies_on(&found, lower, depth + 1);
}

// Examines the devices that a mapped device consists of.
static bool slaves_lead_to(const char *directory, const struct storage *lower, unsigned depth)
{
    char *path;
    DIR *slaves;
    const struct dirent *entry;
    bool found = false;

    if (asprintf(&path, "%s/slaves", directory) < 0) {
        return false;
    }
    slaves = opendir(path);
    while (slaves != NULL && !found && (entry = readdir(slaves)) != NULL) {
        char name[NAME_MAX + sizeof("slaves//dev")];

        snprintf(name, sizeof(name), "slaves/%s/dev", entry->d_name);
        found = entry->d_name[0] != '.' && device_leads_to(directory, name, lower, depth);
    }
    if (slaves != NULL) {
        closedir(slaves);
    }
    free(path);
    return found;
}

static bool lies_on(const struct storage *upper, const struct storage *lower, unsigned depth)
{
    char directory[64];
    char line[PATH_MAX];

    if (!upper->block_device || depth == STORAGE_DEPTH_MAX) {
        return false;
    }
    snprintf(directory, sizeof(directory), "/sys/dev/block/%u:%u", major(upper->device),
             minor(upper->device));
    return loop_leads_to(directory, lower, depth) || slaves_lead_to(directory, lower, depth) ||
           (read_line(directory, "partition", line) &&
            device_leads_to(directory, "../dev", lower, depth));
}

bool storage_overlaps(const struct storage *a, const struct storage *b)
{
    return storage_same(a, b) || lies_on(a, b, 0) || lies_on(b, a, 0);
}
