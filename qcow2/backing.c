// SPDX-License-Identifier: Apache-2.0
#include "qcow2/backing.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/core/image_state.h"
#include "qcow2/format/backing_name.h"

int backing_members_add(struct backing_members *members, const struct backing_member *member)
{
    if (members->count == members->room) {
        size_t room = members->room == 0 ? 16 : 2 * members->room;
        struct backing_member *list = reallocarray(members->list, room, sizeof(*list));

        if (!list)
            return -ENOMEM;
        members->list = list;
        members->room = room;
    }
    members->list[members->count++] = *member;
    return 0;
}

static bool is_known(uint64_t device, uint64_t inode)
{
    return device != 0 || inode != 0;
}

bool backing_members_have(const struct backing_members *members,
                          const struct backing_member *wanted)
{
    bool known = is_known(wanted->device, wanted->inode);

    for (size_t i = 0; i < members->count; i++) {
        const struct backing_member *member = &members->list[i];
        bool same = known && is_known(member->device, member->inode)
                        ? member->device == wanted->device && member->inode == wanted->inode
                        : strcmp(member->name, wanted->name) == 0;

        if (same)
            return true;
    }
    return false;
}

static int stands_behind_itself(const struct image *image, const char *path, struct error *err)
{
    return error_set(
        err, ELOOP,
        "'%s' stands behind itself: '%s' names it as its backing file; give one of the "
        "images another backing file with 'qemu-img rebase -u'",
        path, image->file->name);
}

// Finds the format and path of the backing file that the header names. The caller frees *path.
static int find_backing(const struct image *image, enum image_format *format, char **path,
                        struct error *err)
{
    const struct header *header = &image->header;

    *format = header->backing_format[0] ? image_format_parse(header->backing_format)
                                        : image->options.backing_format;
    if (*format == IMAGE_FORMAT_UNKNOWN && header->backing_format[0])
        return error_set(err, ENOTSUP,
                         "'%s': backing format '%s' is not supported, only qcow2 and raw; make the "
                         "backing file one with 'qemu-img convert', then 'qemu-img rebase -u'",
                         image->file->name, header->backing_format);
    if (*format == IMAGE_FORMAT_UNKNOWN)
        return error_set(
            err, EINVAL,
            "'%s': the header names the backing file '%s' but not its format; say it with "
            "--backing-format, or store it with 'qemu-img rebase -u -F'",
            image->file->name, header->backing_name);
    if (!backing_name_is_local(header->backing_name))
        return error_set(
            err, ENOTSUP,
            "'%s': the backing file '%s' is not a local file; make it one with 'qemu-img "
            "convert' and name that with 'qemu-img rebase -u'",
            image->file->name, header->backing_name);
    *path = backing_name_resolve(image->file->name, header->backing_name);
    return *path ? 0 : error_set(err, ENOMEM, "'%s': no memory", image->file->name);
}

// Opens the file at path, unless it is a member. Membership is checked before the open, because a
// member may be locked, and after it, because the name may stand for another file by then.
static int open_unless_member(const struct image *image, const struct backing_members *members,
                              const char *path, struct file **out, struct error *err)
{
    const struct image_host *host = &image->host;
    struct backing_member identity = {.name = path};

    if (host->identify)
        host->identify(host->context, path, &identity.device, &identity.inode);
    if (backing_members_have(members, &identity))
        return stands_behind_itself(image, path, err);

    int result = host->open_backing(host->context, path, out, err);
    if (result < 0) {
        error_prefix(err, "'%s': backing file", image->file->name);
        return result;
    }
    identity = (struct backing_member){(*out)->device, (*out)->inode, path};
    if (backing_members_have(members, &identity)) {
        file_close(*out);
        return stands_behind_itself(image, path, err);
    }
    return 0;
}

int backing_open_file(const struct image *image, struct backing_members *members,
                      enum image_format *format, struct file **out, struct error *err)
{
    const struct backing_member own = {image->file->device, image->file->inode, image->file->name};
    char *path = NULL;
    int result = find_backing(image, format, &path, err);

    if (result == 0 && backing_members_add(members, &own) < 0)
        result = error_set(err, ENOMEM, "'%s': no memory", image->file->name);
    if (result == 0)
        result = open_unless_member(image, members, path, out, err);
    free(path);
    return result;
}

void backing_members_free(struct backing_members *members)
{
    free(members->list);
    *members = (struct backing_members){0};
}
