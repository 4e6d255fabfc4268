// SPDX-License-Identifier: Apache-2.0
// cmd_create.c: `lazycow create`, with the options and the output of `qemu-img create -f qcow2`.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qcow2/format/backing_name.h"
#include "qcow2/offline/create.h"
#include "qcow2/format/format.h"
#include "qcow2/format/header.h"
#include "qcow2/image.h"
#include "server/cmd.h"
#include "server/create_target.h"
#include "server/create_options.h"

// Guest sizes are whole sectors, as QEMU makes them.
#define SECTOR_BYTES 512u

static void cmd_create_print_help(void)
{
    fputs("Usage: lazycow create [OPTION]... IMAGE [SIZE]\n"
          "Makes a new qcow2 image. SIZE is in bytes or with a suffix k, M, G, T, P or E; with a\n"
          "backing file it defaults to the size of that.\n"
          "\n"
          "  -o NAME=VALUE[,...]    options of the image, see below\n"
          "  -b, --backing FILE     start with the contents of FILE, which is stored as named:\n"
          "                         a relative name is relative to the folder of IMAGE\n"
          "  -F, --backing-format FORMAT\n"
          "                         format of the backing file: qcow2 or raw (needed with -b)\n"
          "  -u                     do not look at the backing file; it need not exist\n"
          "  -f, --format FORMAT    qcow2, the only one\n"
          "      --locking auto|on|off  lock the image meanwhile; auto: where its file system has "
          "locks\n"
          "  -q, --quiet            print nothing but errors\n"
          "  -h, --help             print this and exit\n"
          "\n"
          "Options for -o:\n"
          "  size=SIZE              the same as SIZE\n"
          "  compat=1.1|0.10        version of the format, also v3 or v2 [1.1]\n"
          "  cluster_size=SIZE      512 to 2M, a power of two [64k]\n"
          "  refcount_bits=N        1 to 64, a power of two [16]\n"
          "  lazy_refcounts=on|off  write refcounts at the end only [on; off with compat=0.10]\n"
          "  preallocation=off|metadata|falloc|full\n"
          "                         which space to take now [off]\n"
          "  backing_file=FILE      the same as -b\n"
          "  backing_fmt=FORMAT     the same as -F\n"
          "  compression_type=zlib|zstd\n"
          "                         of clusters that other programs compress [zlib]\n"
          "  nocow=off, extended_l2=off, encryption=off, data_file_raw=off\n"
          "                         accepted with these values only\n"
          "\n"
          "Example: lazycow create -o preallocation=metadata disk.qcow2 10G\n",
          stdout);
}

// Finds the guest size of the backing file at path.
static int backing_size(const char *path, enum image_format format, enum file_locking locking,
                        uint64_t *size, struct error *err)
{
    struct cmd_file cf;
    int ret = cmd_open(&cf, path, CMD_READ, locking, err);
    if (ret == -EAGAIN)
        error_append(err, ", or give the size and -u to leave it unlooked at");
    if (ret < 0)
        return ret;

    if (format == IMAGE_FORMAT_QCOW2) {
        struct header header;
        ret = header_read(cf.file, &header, err);
        if (ret == 0)
            *size = header.size;
    } else {
        int64_t bytes = file_size(cf.file);
        if (bytes < 0)
            ret = error_set(err, (int)-bytes, "'%s': cannot tell its size: %s", path,
                            strerror((int)-bytes));
        else
            *size = (uint64_t)bytes;
    }
    cmd_close(&cf);
    return ret;
}

// Checks the backing file, and takes the guest size from it if none is given.
static int use_backing(struct create_command *c)
{
    const struct create_options *o = &c->options;

    if (o->backing_name == NULL) {
        if (o->backing_format != NULL)
            return cmd_fail("'%s': a backing format without a backing file; add -b", c->path);
        return 0;
    }
    if (o->backing_name[0] == '\0')
        return cmd_fail("'%s': the name of the backing file is empty; leave -b out for none",
                        c->path);
    if (o->backing_format == NULL)
        return cmd_fail("'%s': the format of the backing file is not given; add -F qcow2 or -F raw",
                        c->path);
    enum image_format format = image_format_parse(o->backing_format);
    if (format == IMAGE_FORMAT_UNKNOWN)
        return cmd_fail("'%s': backing format '%s' is not supported; use qcow2 or raw", c->path,
                        o->backing_format);
    if (c->unsafe)
        return 0;
    if (!backing_name_is_local(o->backing_name))
        return cmd_fail("'%s': backing file '%s' is not a local file; convert it to one, or store "
                        "the name unchecked with -u",
                        c->path, o->backing_name);

    char *path = backing_name_resolve(c->path, o->backing_name);
    if (path == NULL)
        return cmd_fail("'%s': no memory", c->path);
    struct error err;
    uint64_t size = 0;
    int ret = backing_size(path, format, c->locking, &size, &err);
    free(path);
    if (ret < 0)
        return cmd_fail("'%s': backing file: %s", c->path, err.text);
    if (!c->have_size) {
        c->options.size = size;
        c->have_size = true;
    }
    return 0;
}

// Prints the line that qemu-img prints. Returns as cmd_flush_output().
static int print_formatting(const struct create_command *c)
{
    const struct create_options *o = &c->options;

    printf("Formatting '%s', fmt=qcow2 cluster_size=%llu extended_l2=off ", c->path,
           1ull << o->cluster_bits);
    if (c->preallocation != NULL)
        printf("preallocation=%s ", c->preallocation);
    printf("compression_type=%s size=%" PRIu64,
           o->compression_type == FORMAT_COMPRESSION_ZSTD ? "zstd" : "zlib", o->size);
    if (c->version != NULL)
        printf(" compat=%s", c->version);
    if (o->backing_name != NULL)
        printf(" backing_file=%s backing_fmt=%s", o->backing_name, o->backing_format);
    printf(" lazy_refcounts=%s refcount_bits=%u", o->lazy_refcounts ? "on" : "off",
           1u << o->refcount_order);
    if (c->nocow != NULL)
        printf(" nocow=%s", c->nocow);
    putchar('\n');
    return cmd_flush_output();
}

static void cmd_create_show_progress(void *context, uint64_t done, uint64_t total)
{
    (void)context;
    fprintf(stderr, "\r    (%.2f/100%%)%s", 100.0 * (double)done / (double)total,
            done == total ? "\n" : "");
}

static int make_image(struct create_command *c)
{
    struct create_target target;
    struct error err;

    if (create_target_open(&target, c) != 0)
        return 1;
    int ret = create_image(target.cf.file, &c->options, &err);
    create_target_close(&target, ret == 0);
    return ret < 0 ? cmd_fail("%s", err.text) : 0;
}

static int cmd_create_run(struct create_command *c)
{
    struct create_options *o = &c->options;

    int ret = use_backing(c);
    if (ret != 0)
        return ret;
    if (!c->have_size)
        return cmd_fail("'%s': no size is given; add one, such as 10G", c->path);
    o->size = (o->size + SECTOR_BYTES - 1) & ~(uint64_t)(SECTOR_BYTES - 1);
    if (!c->lazy_asked)
        o->lazy_refcounts = o->version >= 3;

    struct error err;
    if (create_check(o, c->path, &err) < 0)
        return cmd_fail("%s", err.text);
    if (!c->quiet) {
        // Printed before anything is made, so that a failure to print leaves nothing behind.
        if (print_formatting(c) < 0)
            return 1;
        if (isatty(STDERR_FILENO))
            o->progress = cmd_create_show_progress;
    }
    return make_image(c);
}

// The -o lists in the order given; they are applied when all options, and with them the image's
// name, are known.
#define OPTION_LISTS_MAX 64

// Takes the arguments behind the options, applies the lists and creates the image. Returns the exit
// code.
static int take_arguments(struct create_command *c, int argc, char **argv, char *const *lists,
                          size_t list_count)
{
    int ret = 0;

    if (argc - optind < 1 || argc - optind > 2) {
        return cmd_wrong_use("create", "expected IMAGE and maybe SIZE, not %d arguments",
                             argc - optind);
    }
    c->path = backing_name_path(argv[optind]);
    if (c->path[0] == '\0')
        return cmd_wrong_use("create", "the name of the image is empty");
    if (!backing_name_is_local(argv[optind]))
        return cmd_fail("'%s': not the name of a local file; write './%s' for a file called so",
                        c->path, c->path);
    if (argc - optind == 2)
        ret = create_take_size(c, argv[optind + 1]);
    for (size_t i = 0; i < list_count && ret == 0; i++)
        ret = create_take_options(c, lists[i]);
    return ret != 0 ? ret : cmd_create_run(c);
}

int cmd_create(int argc, char **argv)
{
    enum { OPTION_LOCKING = 256 };
    static const struct option long_options[] = {
        {"backing", required_argument, NULL, 'b'},
        {"backing-format", required_argument, NULL, 'F'},
        {"format", required_argument, NULL, 'f'},
        {"quiet", no_argument, NULL, 'q'},
        {"locking", required_argument, NULL, OPTION_LOCKING},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct create_command c = {
        .options = {.version = 3,
                    .cluster_bits = CREATE_CLUSTER_BITS_DEFAULT,
                    .refcount_order = CREATE_REFCOUNT_ORDER_DEFAULT},
        .locking = FILE_LOCKING_AUTO,
    };
    char *lists[OPTION_LISTS_MAX];
    size_t list_count = 0;
    int opt;

    opterr = 0;
    while ((opt = getopt_long(argc, argv, ":o:b:F:f:quh", long_options, NULL)) != -1) {
        switch (opt) {
        case 'o':
            if (strcmp(optarg, "help") == 0 || strcmp(optarg, "?") == 0) {
                cmd_create_print_help();
                return 0;
            }
            if (list_count == OPTION_LISTS_MAX)
                return cmd_fail("more than %d times -o; join them with commas", OPTION_LISTS_MAX);
            lists[list_count++] = optarg;
            break;
        case 'b':
            c.options.backing_name = optarg;
            break;
        case 'F':
            c.options.backing_format = optarg;
            break;
        case 'f':
            if (image_format_parse(optarg) != IMAGE_FORMAT_QCOW2)
                return cmd_fail("format '%s' cannot be created; use qcow2", optarg);
            break;
        case 'q':
            c.quiet = true;
            break;
        case 'u':
            c.unsafe = true;
            break;
        case OPTION_LOCKING:
            if (!cmd_parse_locking("create", optarg, &c.locking))
                return 1;
            break;
        case 'h':
            cmd_create_print_help();
            return 0;
        default:
            return cmd_wrong_option("create", opt, argc, argv, long_options);
        }
    }
    return take_arguments(&c, argc, argv, lists, list_count);
}
