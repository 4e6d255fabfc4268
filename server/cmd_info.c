// SPDX-License-Identifier: Apache-2.0
// cmd_info.c: `lazycow info`, with the output of `qemu-img info`.
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "qcow2/backing.h"
#include "qcow2/format/backing_name.h"
#include "server/cmd.h"
#include "server/info.h"

struct info_command {
    const char *path;
    enum image_format format;
    enum cmd_access access;
    enum file_locking locking;
    bool chain;
    bool json;
};

static void cmd_info_print_help(void)
{
    fputs("Usage: lazycow info [OPTION]... IMAGE\n"
          "Tells about an image.\n"
          "\n"
          "      --output human|json  [human]\n"
          "      --backing-chain      and about its backing files\n"
          "  -f, --format FORMAT      qcow2 or raw; by default what the file begins like\n"
          "  -U, --force-share        look at an image in use; what it says may be outdated\n"
          "      --locking auto|on|off\n"
          "                           lock the image meanwhile; auto: where its file system has "
          "locks\n"
          "  -h, --help               print this and exit\n",
          stdout);
}

// Refuses an image that occurs in the chain for a second time. path stays borrowed. Returns 0, or 1
// after a message.
static int note_member(struct backing_members *members, const char *path)
{
    struct backing_member member = {.name = path};
    struct stat st;

    if (stat(path, &st) == 0) {
        member.device = st.st_dev;
        member.inode = st.st_ino;
    }
    if (backing_members_have(members, &member))
        return cmd_fail("'%s': stands behind itself in the backing chain; give one of the images "
                        "another backing file with 'qemu-img rebase -u'",
                        path);
    if (backing_members_add(members, &member) < 0)
        return cmd_fail("'%s': no memory", path);
    return 0;
}

// Appends the infos of the image and, if asked for, of its backing files. Returns 0, or 1 after a
// message.
static int read_chain(const struct info_command *c, struct backing_members *members, json_t *list)
{
    const char *path = c->path;
    enum image_format format = c->format;

    while (path != NULL) {
        struct error err;
        json_t *info;

        if (note_member(members, path) != 0)
            return 1;
        info = info_read(path, format, c->access, c->locking, &err);
        if (info == NULL)
            return cmd_fail("%s", err.text);
        json_array_append_new(list, info);
        if (!c->chain)
            return 0;
        // The string belongs to info, and so to the list.
        path = json_string_value(json_object_get(info, "full-backing-filename"));
        const char *name = json_string_value(json_object_get(info, "backing-filename-format"));
        format = name == NULL ? IMAGE_FORMAT_UNKNOWN : image_format_parse(name);
        if (path != NULL && name != NULL && format == IMAGE_FORMAT_UNKNOWN)
            return cmd_fail("'%s': backing format '%s' is not supported; leave --backing-chain out",
                            path, name);
        if (path != NULL && !backing_name_is_local(path))
            return cmd_fail("'%s': not a local file; leave --backing-chain out", path);
    }
    return 0;
}

static int cmd_info_run(const struct info_command *c)
{
    json_t *list = json_array();
    struct backing_members members = {0};
    int ret = read_chain(c, &members, list);

    backing_members_free(&members);

    if (ret == 0 && c->json) {
        ret = cmd_print_json(c->chain ? list : json_array_get(list, 0)) < 0;
    } else if (ret == 0) {
        for (size_t i = 0; i < json_array_size(list); i++) {
            if (i > 0)
                putchar('\n');
            info_print(json_array_get(list, i));
        }
    }
    json_decref(list);
    return ret != 0 || cmd_flush_output() < 0;
}

int cmd_info(int argc, char **argv)
{
    enum { OPTION_OUTPUT = 256, OPTION_CHAIN, OPTION_LOCKING };
    static const struct option long_options[] = {
        {"output", required_argument, NULL, OPTION_OUTPUT},
        {"backing-chain", no_argument, NULL, OPTION_CHAIN},
        {"format", required_argument, NULL, 'f'},
        {"force-share", no_argument, NULL, 'U'},
        {"locking", required_argument, NULL, OPTION_LOCKING},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct info_command c = {
        .format = IMAGE_FORMAT_UNKNOWN, .access = CMD_READ, .locking = FILE_LOCKING_AUTO};
    int opt;

    opterr = 0;
    while ((opt = getopt_long(argc, argv, ":f:Uh", long_options, NULL)) != -1) {
        switch (opt) {
        case OPTION_OUTPUT:
            if (!cmd_parse_output("info", optarg, &c.json))
                return 1;
            break;
        case OPTION_LOCKING:
            if (!cmd_parse_locking("info", optarg, &c.locking))
                return 1;
            break;
        case OPTION_CHAIN:
            c.chain = true;
            break;
        case 'f':
            c.format = image_format_parse(optarg);
            if (c.format == IMAGE_FORMAT_UNKNOWN)
                return cmd_fail("info: format '%s' is not supported; use qcow2 or raw", optarg);
            break;
        case 'U':
            c.access = CMD_READ_SHARED;
            break;
        case 'h':
            cmd_info_print_help();
            return 0;
        default:
            return cmd_wrong_option("info", opt, argc, argv, long_options);
        }
    }
    c.path = cmd_one_image(argc, argv, "info");
    if (c.path == NULL)
        return 1;
    return cmd_info_run(&c);
}
