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

// Guest sizes are whole sectors, as QEMU makes them.
#define SECTOR_BYTES 512u

struct create_command {
    struct create_options options;
    char *path;
    bool have_size;
    bool quiet;
    bool unsafe;               // the backing file is not looked at
    bool lazy_asked;           // lazy_refcounts was given
    const char *preallocation; // as given, NULL if not
    const char *version;
    const char *nocow;
};

static void print_help(void)
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

static bool parse_switch(const char *value, bool *on)
{
    *on = value == NULL || strcmp(value, "on") == 0 || strcmp(value, "yes") == 0 ||
          strcmp(value, "true") == 0 || strcmp(value, "y") == 0;
    return *on || strcmp(value, "off") == 0 || strcmp(value, "no") == 0 ||
           strcmp(value, "false") == 0 || strcmp(value, "n") == 0;
}

// The exponent of a power of two; false for any other number.
static bool power_of_two(uint64_t value, unsigned *exponent)
{
    if (value == 0 || (value & (value - 1)) != 0)
        return false;
    *exponent = (unsigned)__builtin_ctzll(value);
    return true;
}

static int bad_value(const struct create_command *c, const char *name, const char *value,
                     const char *wanted)
{
    return cmd_fail("'%s': option %s=%s: must be %s", c->path, name, value ? value : "", wanted);
}

static int take_size(struct create_command *c, const char *text)
{
    if (c->have_size)
        return cmd_fail("'%s': the size is given twice; leave one of them out", c->path);
    if (!cmd_parse_size(text, &c->options.size))
        return cmd_fail("'%s': invalid size '%s'; use a number up to 2^63-1, or with a suffix "
                        "k, M, G, T, P or E",
                        c->path, text);
    c->have_size = true;
    return 0;
}

static int option_size(struct create_command *c, const char *name, char *value)
{
    return value == NULL ? bad_value(c, name, value, "a size") : take_size(c, value);
}

static int option_compat(struct create_command *c, const char *name, char *value)
{
    if (value != NULL && (strcmp(value, "0.10") == 0 || strcmp(value, "v2") == 0))
        c->options.version = 2;
    else if (value != NULL && (strcmp(value, "1.1") == 0 || strcmp(value, "v3") == 0))
        c->options.version = 3;
    else
        return bad_value(c, name, value, "0.10 (or v2) or 1.1 (or v3)");
    c->version = value;
    return 0;
}

static int option_cluster_size(struct create_command *c, const char *name, char *value)
{
    uint64_t size;

    if (value == NULL || !cmd_parse_size(value, &size) ||
        !power_of_two(size, &c->options.cluster_bits) ||
        c->options.cluster_bits < HEADER_CLUSTER_BITS_MIN ||
        c->options.cluster_bits > HEADER_CLUSTER_BITS_MAX)
        return bad_value(c, name, value, "a power of two from 512 to 2M");
    return 0;
}

static int option_refcount_bits(struct create_command *c, const char *name, char *value)
{
    uint64_t bits;

    if (value == NULL || !cmd_parse_size(value, &bits) ||
        !power_of_two(bits, &c->options.refcount_order) ||
        c->options.refcount_order > FORMAT_REFCOUNT_ORDER_MAX)
        return bad_value(c, name, value, "a power of two from 1 to 64");
    return 0;
}

static int option_lazy_refcounts(struct create_command *c, const char *name, char *value)
{
    c->lazy_asked = true;
    return parse_switch(value, &c->options.lazy_refcounts) ? 0
                                                           : bad_value(c, name, value, "on or off");
}

static int option_preallocation(struct create_command *c, const char *name, char *value)
{
    static const char *const modes[] = {[CREATE_PREALLOCATE_OFF] = "off",
                                        [CREATE_PREALLOCATE_METADATA] = "metadata",
                                        [CREATE_PREALLOCATE_SPACE] = "falloc",
                                        [CREATE_PREALLOCATE_ZEROS] = "full"};

    for (size_t i = 0; value != NULL && i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (strcmp(value, modes[i]) == 0) {
            c->options.preallocation = (enum create_preallocation)i;
            c->preallocation = value;
            return 0;
        }
    }
    return bad_value(c, name, value, "off, metadata, falloc or full");
}

static int option_backing_file(struct create_command *c, const char *name, char *value)
{
    if (value == NULL || value[0] == '\0')
        return bad_value(c, name, value, "a file name");
    c->options.backing_name = value;
    return 0;
}

static int option_backing_format(struct create_command *c, const char *name, char *value)
{
    if (value == NULL || value[0] == '\0')
        return bad_value(c, name, value, "qcow2 or raw");
    c->options.backing_format = value;
    return 0;
}

// What is not supported may be given where it asks for nothing.
static int option_off(struct create_command *c, const char *name, char *value)
{
    bool on;

    if (!parse_switch(value, &on))
        return bad_value(c, name, value, "off");
    if (on)
        return cmd_fail("'%s': %s is not supported; leave it out", c->path, name);
    if (strcmp(name, "nocow") == 0)
        c->nocow = value;
    return 0;
}

static int option_compression(struct create_command *c, const char *name, char *value)
{
    if (value == NULL || (strcmp(value, "zlib") != 0 && strcmp(value, "zstd") != 0))
        return bad_value(c, name, value, "zlib or zstd");
    c->options.compression_type =
        strcmp(value, "zstd") == 0 ? FORMAT_COMPRESSION_ZSTD : FORMAT_COMPRESSION_ZLIB;
    return 0;
}

static int option_unsupported(struct create_command *c, const char *name, char *value)
{
    (void)value;
    return cmd_fail("'%s': %s is not supported; leave it out", c->path, name);
}

static int take_option(struct create_command *c, const char *name, char *value)
{
    static const struct {
        const char *name;
        int (*take)(struct create_command *c, const char *name, char *value);
    } options[] = {
        {"size", option_size},
        {"compat", option_compat},
        {"cluster_size", option_cluster_size},
        {"refcount_bits", option_refcount_bits},
        {"lazy_refcounts", option_lazy_refcounts},
        {"preallocation", option_preallocation},
        {"backing_file", option_backing_file},
        {"backing_fmt", option_backing_format},
        {"nocow", option_off},
        {"extended_l2", option_off},
        {"data_file_raw", option_off},
        {"encryption", option_off},
        {"compression_type", option_compression},
        {"data_file", option_unsupported},
    };

    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        if (strcmp(name, options[i].name) == 0)
            return options[i].take(c, name, value);
    }
    if (strncmp(name, "encrypt.", 8) == 0)
        return option_unsupported(c, name, value);
    cmd_fail("'%s': unknown option '%s'", c->path, name);
    return cmd_hint("create");
}

// Applies one -o list; values keep pointing into it.
static int take_options(struct create_command *c, char *list)
{
    char *name, *value;

    while (cmd_next_option(&list, &name, &value)) {
        int ret = take_option(c, name, value);
        if (ret != 0)
            return ret;
    }
    return 0;
}

// Guest size of the backing file at path.
static int backing_size(const char *path, enum image_format format, uint64_t *size,
                        struct error *err)
{
    struct cmd_file cf;
    int ret = cmd_open(&cf, path, CMD_READ, err);
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

// Checks the backing file and takes the size from it where none is given.
static int use_backing(struct create_command *c)
{
    const struct create_options *o = &c->options;

    if (o->backing_name == NULL) {
        if (o->backing_format != NULL)
            return cmd_fail("'%s': a backing format without a backing file; add -b", c->path);
        return 0;
    }
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
    int ret = backing_size(path, format, &size, &err);
    free(path);
    if (ret < 0)
        return cmd_fail("'%s': backing file: %s", c->path, err.text);
    if (!c->have_size) {
        c->options.size = size;
        c->have_size = true;
    }
    return 0;
}

// The line that qemu-img prints. Returns as cmd_flush_output().
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

static void show_progress(void *context, uint64_t done, uint64_t total)
{
    (void)context;
    fprintf(stderr, "\r    (%.2f/100%%)%s", 100.0 * (double)done / (double)total,
            done == total ? "\n" : "");
}

static int make_image(struct create_command *c)
{
    struct error err;

    // Made only if it is not there: what is there may be in use, which the lock tells.
    int fd = open(c->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    bool made = fd >= 0;
    if (!made && errno != EEXIST)
        return cmd_fail("'%s': cannot be created: %s", c->path, strerror(errno));
    if (made)
        close(fd);

    struct cmd_file cf;
    int ret = cmd_open(&cf, c->path, CMD_WRITE, &err);
    if (ret == 0) {
        ret = create_image(cf.file, &c->options, &err);
        cmd_close(&cf);
    }
    if (ret < 0 && made)
        unlink(c->path);
    return ret < 0 ? cmd_fail("%s", err.text) : 0;
}

static int run(struct create_command *c)
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
        // Before anything is made: an error here leaves nothing behind.
        if (print_formatting(c) < 0)
            return 1;
        if (isatty(STDERR_FILENO))
            o->progress = show_progress;
    }
    return make_image(c);
}

// The -o lists in the order they were given; the image's name is known only after all options.
#define OPTION_LISTS_MAX 64

int cmd_create(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"backing", required_argument, NULL, 'b'}, {"backing-format", required_argument, NULL, 'F'},
        {"format", required_argument, NULL, 'f'},  {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    struct create_command c = {
        .options = {.version = 3,
                    .cluster_bits = CREATE_CLUSTER_BITS_DEFAULT,
                    .refcount_order = CREATE_REFCOUNT_ORDER_DEFAULT},
    };
    static char title[] = "lazycow create"; // for getopt's messages
    char *lists[OPTION_LISTS_MAX];
    size_t list_count = 0;
    int opt;

    argv[0] = title;
    while ((opt = getopt_long(argc, argv, "o:b:F:f:quh", long_options, NULL)) != -1) {
        switch (opt) {
        case 'o':
            if (strcmp(optarg, "help") == 0 || strcmp(optarg, "?") == 0) {
                print_help();
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
        case 'h':
            print_help();
            return 0;
        default:
            return cmd_hint("create");
        }
    }
    if (argc - optind < 1 || argc - optind > 2) {
        cmd_fail("create: expected IMAGE and maybe SIZE");
        return cmd_hint("create");
    }
    c.path = argv[optind];
    int ret = 0;
    if (argc - optind == 2)
        ret = take_size(&c, argv[optind + 1]);
    for (size_t i = 0; i < list_count && ret == 0; i++)
        ret = take_options(&c, lists[i]);
    return ret != 0 ? ret : run(&c);
}
