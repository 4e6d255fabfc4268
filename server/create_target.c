// SPDX-License-Identifier: Apache-2.0
#include "server/create_target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2/format/backing_name.h"
#include "qcow2/format/header.h"
#include "qcow2/image.h"
#include "server/storage.h"

// ---- The backing chain --------------------------------------------------------------------------

// The files of a chain that were looked at, to know one that stands on itself.
struct seen {
    struct storage *list;
    size_t count;
};

// Returns false for one that was seen before, or without memory: then the walk ends.
static bool seen_add(struct seen *seen, const struct storage *storage)
{
    struct storage *grown;

    for (size_t i = 0; i < seen->count; i++) {
        if (storage_same(&seen->list[i], storage)) {
            return false;
        }
    }
    grown = realloc(seen->list, (seen->count + 1) * sizeof(*grown));
    if (grown == NULL) {
        return false;
    }
    seen->list = grown;
    seen->list[seen->count++] = *storage;
    return true;
}

// The path of the backing file that an image names, allocated; NULL at the end of the chain, and
// where it cannot be followed: whoever opens the chain is told why.
static char *next_in_chain(const char *path)
{
    struct header header;
    struct cmd_file cf;
    struct error err;
    char *next = NULL;

    // Without locks: we may hold one on the file ourselves.
    if (cmd_open(&cf, path, CMD_READ_SHARED, FILE_LOCKING_OFF, &err) < 0) {
        return NULL;
    }
    if (cmd_is_qcow2(cf.file) && header_read(cf.file, &header, &err) == 0 &&
        header.backing_name[0] != '\0' && backing_name_is_local(header.backing_name)) {
        next = backing_name_resolve(path, header.backing_name);
    }
    cmd_close(&cf);
    return next;
}

// Whether the target is one of the files that an image at path would stand on. *member is the one,
// to be freed.
static bool stands_on(const struct storage *target, const char *path,
                      const struct create_options *options, char **member)
{
    bool raw = options->backing_format != NULL &&
               image_format_parse(options->backing_format) == IMAGE_FORMAT_RAW;
    struct seen seen = {0};
    bool found = false;
    char *name = NULL;
    struct stat st;

    if (options->backing_name != NULL && backing_name_is_local(options->backing_name)) {
        name = backing_name_resolve(path, options->backing_name);
    }
    while (name != NULL && stat(backing_name_path(name), &st) == 0) {
        struct storage storage = storage_of(&st);
        char *next;

        found = storage_overlaps(target, &storage);
        if (found || raw || !seen_add(&seen, &storage)) {
            break;
        }
        next = next_in_chain(name);
        free(name);
        name = next;
    }
    free(seen.list);
    *member = name;
    return found;
}

static int refuse_member(const char *path, char *member)
{
    cmd_fail(
        "'%s': the new image would overwrite its own backing chain, in which this file is '%s'; "
        "choose another name",
        path, member);
    free(member);
    return 1;
}

// ---- The file -----------------------------------------------------------------------------------

// Makes the file if it is not there: what is there may be in use, which the lock tells. *made is the
// path of a new file, to be freed. A link that leads to no file has that made, as by qemu-img. Returns
// 0, or 1 after a message.
static int make_file(const char *path, char **made)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

    if (fd < 0 && errno == EEXIST) {
        if (access(path, F_OK) == 0 || errno != ENOENT)
            return 0;
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0)
            return cmd_fail("'%s': a link to a file that is not there and cannot be created: %s",
                            path, strerror(errno));
    }
    if (fd < 0)
        return cmd_fail("'%s': cannot be created: %s%s", path, strerror(errno),
                        errno == ENOENT   ? "; make its folder first"
                        : errno == EACCES ? "; create it where this user may write"
                                          : "");
    close(fd);
    *made = realpath(path, NULL);
    return 0;
}

int create_target_open(struct create_target *target, const char *path,
                       const struct create_options *options, enum file_locking locking)
{
    struct storage storage;
    struct error err;
    struct stat st;
    char *member;

    target->made = NULL;
    if (make_file(path, &target->made) != 0) {
        return 1;
    }
    if (cmd_open(&target->cf, path, CMD_WRITE, locking, &err) < 0) {
        if (target->made != NULL) {
            unlink(target->made);
        }
        free(target->made);
        return cmd_fail("%s", err.text);
    }
    if (stat(path, &st) < 0 || st.st_dev != target->cf.file->device ||
        st.st_ino != target->cf.file->inode) {
        create_target_close(target, false);
        return cmd_fail("'%s': was replaced while it was opened; try again", path);
    }
    storage = storage_of(&st);
    if (stands_on(&storage, path, options, &member)) {
        create_target_close(target, false);
        return refuse_member(path, member);
    }
    free(member);
    return 0;
}

void create_target_close(struct create_target *target, bool keep)
{
    struct stat st;

    // Another file that has got the path meanwhile stays.
    if (!keep && target->made != NULL && lstat(target->made, &st) == 0 &&
        st.st_dev == target->cf.file->device && st.st_ino == target->cf.file->inode) {
        unlink(target->made);
    }
    cmd_close(&target->cf);
    free(target->made);
    target->made = NULL;
}
