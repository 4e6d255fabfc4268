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

// Files of a chain that were seen, to recognise a chain that contains itself.
struct seen {
    struct storage *list;
    size_t count;
};

// Adds a file. Returns 0, or a negative errno with a message: the file was seen before, or there is
// no memory.
static int seen_add(struct seen *seen, const char *path, const struct storage *storage,
                    struct error *err)
{
    struct storage *grown;

    for (size_t i = 0; i < seen->count; i++) {
        if (storage_same(&seen->list[i], storage)) {
            return error_set(err, ELOOP, "'%s' stands behind itself", path);
        }
    }
    grown = realloc(seen->list, (seen->count + 1) * sizeof(*grown));
    if (grown == NULL) {
        return error_set(err, ENOMEM, "'%s': out of memory", path);
    }
    seen->list = grown;
    seen->list[seen->count++] = *storage;
    return 0;
}

// A file of a chain: its path, allocated, and its format, unknown unless something tells it.
struct link {
    char *path;
    enum image_format format;
};

// Replaces link by the backing file that it names, or its path by NULL at the end of the chain.
// Returns 0, or a negative errno with a message if the chain cannot be followed.
static int follow(struct link *link, struct error *err)
{
    struct header header;
    struct cmd_file cf;
    char *path = NULL;
    int result;

    // Without locks, because this process may hold one on the file itself.
    result = cmd_open(&cf, link->path, CMD_READ_SHARED, FILE_LOCKING_OFF, err);
    if (result < 0) {
        return result;
    }
    header.backing_name[0] = '\0';
    if (link->format == IMAGE_FORMAT_QCOW2 || cmd_is_qcow2(cf.file)) {
        result = header_read_any(cf.file, &header, err);
    }
    cmd_close(&cf);
    if (result == 0 && header.backing_name[0] != '\0') {
        if (!backing_name_is_local(header.backing_name)) {
            return error_set(err, ENOTSUP, "'%s': its backing file '%s' is not a local file",
                             link->path, header.backing_name);
        }
        path = backing_name_resolve(link->path, header.backing_name);
        if (path == NULL) {
            return error_set(err, ENOMEM, "'%s': out of memory", link->path);
        }
        link->format = image_format_parse(header.backing_format);
    }
    if (result == 0) {
        free(link->path);
        link->path = path;
    }
    return result;
}

// Searches the target among the backing files of the new image, beginning with link. Ends with link
// being the target, or with its path NULL. Returns 0, or a negative errno with a message if the
// chain cannot be followed.
static int find_in_chain(const struct storage *target, struct link *link, struct error *err)
{
    struct seen seen = {0};
    struct stat st;
    int result = 0;

    while (result == 0 && link->path != NULL) {
        struct storage storage;

        if (stat(backing_name_path(link->path), &st) < 0) {
            result = error_set(err, errno, "%s: cannot open: %s", link->path, strerror(errno));
            break;
        }
        storage = storage_of(&st);
        if (storage_overlaps(target, &storage)) {
            break;
        }
        result = seen_add(&seen, link->path, &storage, err);
        if (result == 0 && link->format == IMAGE_FORMAT_RAW) {
            free(link->path);
            link->path = NULL;
        } else if (result == 0) {
            result = follow(link, err);
        }
    }
    free(seen.list);
    return result;
}

// Refuses a target that is in the new image's backing chain, and a chain that cannot be followed.
// Returns 0, or 1 after a message.
static int create_target_check_chain(const struct storage *target,
                                     const struct create_command *command)
{
    const struct create_options *options = &command->options;
    struct link link = {.format = IMAGE_FORMAT_UNKNOWN};
    struct error err;
    int code = 0;

    if (options->backing_name == NULL || !backing_name_is_local(options->backing_name)) {
        return 0;
    }
    if (options->backing_format != NULL) {
        link.format = image_format_parse(options->backing_format);
    }
    link.path = backing_name_resolve(command->path, options->backing_name);
    if (link.path == NULL) {
        return cmd_fail("'%s': out of memory", command->path);
    }
    if (find_in_chain(target, &link, &err) < 0) {
        // With -u the backing file need not exist.
        if (!command->unsafe) {
            code = cmd_fail("'%s': backing chain: %s; -u leaves it unlooked at", command->path,
                            err.text);
        }
    } else if (link.path != NULL) {
        code = cmd_fail("'%s': the new image would overwrite its own backing chain, in which this "
                        "file is '%s'; choose another name",
                        command->path, link.path);
    }
    free(link.path);
    return code;
}

// ---- The file -----------------------------------------------------------------------------------

// Makes the file if it does not exist. An existing one is not emptied: it may be in use, and only
// its lock tells. *made is the path of a new file, to be freed. A dangling link has its target
// made, as by qemu-img. Returns 0, or 1 after a message.
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

int create_target_open(struct create_target *target, const struct create_command *command)
{
    const char *path = command->path;
    struct storage storage;
    struct error err;
    struct stat st;

    target->made = NULL;
    if (make_file(path, &target->made) != 0) {
        return 1;
    }
    if (cmd_open(&target->cf, path, CMD_WRITE, command->locking, &err) < 0) {
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
    if (create_target_check_chain(&storage, command) != 0) {
        create_target_close(target, false);
        return 1;
    }
    return 0;
}

void create_target_close(struct create_target *target, bool keep)
{
    struct stat st;

    // Leaves a file alone that another program has put under the path since.
    if (!keep && target->made != NULL && lstat(target->made, &st) == 0 &&
        st.st_dev == target->cf.file->device && st.st_ino == target->cf.file->inode) {
        unlink(target->made);
    }
    cmd_close(&target->cf);
    free(target->made);
    target->made = NULL;
}
