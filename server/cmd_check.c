// SPDX-License-Identifier: Apache-2.0
// cmd_check.c: `lazycow check`, with the output and the exit codes of `qemu-img check`.
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "qcow2/offline/check.h"
#include "qcow2/format/foreign.h"
#include "qcow2/format/format.h"
#include "qcow2/image.h"
#include "server/cmd.h"

// Exit codes.
enum {
    EXIT_CLEAN = 0,
    EXIT_NOT_CHECKED = 1,
    EXIT_CORRUPT = 2,
    EXIT_LEAKS = 3,
    // The format has no check, or a feature is not supported.
    EXIT_NO_CHECKS = 63,
};

struct check_command {
    const char *path;
    // NULL: found from the first bytes.
    const char *format;
    enum check_repair repair;
    enum cmd_access access;
    enum file_locking locking;
    bool json;
    bool quiet;
    bool progress_shown;
    // The percentage that was shown last.
    int percent;
};

static void cmd_check_print_help(void)
{
    fputs("Usage: lazycow check [OPTION]... IMAGE\n"
          "Checks the consistency of a qcow2 image that is not in use.\n"
          "\n"
          "  -r, --repair leaks|all  give leaked clusters back, or repair all that can be\n"
          "      --output human|json [human]\n"
          "  -f, --format FORMAT     format of the image; only qcow2 has checks\n"
          "  -q, --quiet             print nothing but errors\n"
          "  -U, --force-share       look at an image in use; may see errors that are not there\n"
          "      --locking auto|on|off\n"
          "                          lock the image meanwhile; auto: where its file system has "
          "locks\n"
          "  -h, --help              print this and exit\n"
          "\n"
          "Exit codes: 0 consistent, 1 not checked, 2 corrupt, 3 leaked clusters only,\n"
          "63 the format or a feature of the image is not supported.\n",
          stdout);
}

// ---- Progress -----------------------------------------------------------------------------------

static void hide_progress(struct check_command *c)
{
    if (c->progress_shown)
        fputs("\r                    \r", stderr);
    c->progress_shown = false;
}

static void cmd_check_say(void *context, const char *line)
{
    struct check_command *c = context;

    hide_progress(c);
    fprintf(stderr, "%s\n", line);
}

static void cmd_check_show_progress(void *context, uint64_t done, uint64_t total)
{
    struct check_command *c = context;
    int percent = total == 0 ? 100 : (int)((double)done * 100.0 / (double)total);

    if (percent == c->percent && c->progress_shown)
        return;
    fprintf(stderr, "\r    checking %3d %%", percent);
    c->percent = percent;
    c->progress_shown = true;
}

// ---- The result ---------------------------------------------------------------------------------

// Returns as cmd_flush_output().
static int print_json(const struct check_command *c, const struct check_result *r)
{
    json_t *object = json_object();

    json_object_set_new(object, "image-end-offset", json_integer((json_int_t)r->image_end));
    json_object_set_new(object, "check-errors", json_integer(0));
    // These counts are left out when they are 0, as by qemu-img.
    const struct {
        const char *name;
        uint64_t value;
    } optional[] = {
        {"total-clusters", r->total_clusters},
        {"corruptions", r->corruptions},
        {"leaks", r->leaks},
        {"corruptions-fixed", r->corruptions_fixed},
        {"leaks-fixed", r->leaks_fixed},
        {"allocated-clusters", r->allocated_clusters},
        {"fragmented-clusters", r->fragmented_clusters},
        {"compressed-clusters", r->compressed_clusters},
    };
    for (size_t i = 0; i < sizeof(optional) / sizeof(optional[0]); i++) {
        if (optional[i].value > 0)
            json_object_set_new(object, optional[i].name,
                                json_integer((json_int_t)optional[i].value));
    }
    json_object_set_new(object, "filename", cmd_json_text(c->path));
    json_object_set_new(object, "format", json_string("qcow2"));
    int ret = cmd_print_json(object);
    json_decref(object);
    return ret;
}

static void print_human(const struct check_result *r)
{
    if (r->corruptions_fixed > 0 || r->leaks_fixed > 0)
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n"
               "Double checking the fixed image now...\n",
               r->leaks_fixed, r->corruptions_fixed);
    if (r->corruptions == 0 && r->leaks == 0)
        puts("No errors were found on the image.");
    if (r->corruptions > 0)
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               r->corruptions);
    if (r->leaks > 0)
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               r->leaks);
    if (r->total_clusters > 0 && r->allocated_clusters > 0)
        printf("%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% fragmented, "
               "%.2f%% compressed clusters\n",
               r->allocated_clusters, r->total_clusters,
               (double)r->allocated_clusters * 100.0 / (double)r->total_clusters,
               (double)r->fragmented_clusters * 100.0 / (double)r->allocated_clusters,
               (double)r->compressed_clusters * 100.0 / (double)r->allocated_clusters);
    if (r->image_end > 0)
        printf("Image end offset: %" PRIu64 "\n", r->image_end);
}

static int cmd_check_run(struct check_command *c)
{
    struct error err;
    struct cmd_file cf;
    struct check_result result;
    struct check_options options = {.repair = c->repair, .context = c};

    if (!c->quiet)
        options.message = cmd_check_say;
    if (!c->quiet && isatty(STDERR_FILENO))
        options.progress = cmd_check_show_progress;
    int ret = cmd_open(&cf, c->path, c->access, c->locking, &err);
    if (ret == -EAGAIN && c->repair == CHECK_REPORT)
        error_append(&err, ", or look at it all the same with -U (--force-share)");
    if (ret < 0) {
        cmd_fail("%s", err.text);
        return EXIT_NOT_CHECKED;
    }
    if (c->format == NULL && !cmd_is_qcow2(cf.file)) {
        const struct foreign_format *foreign = foreign_format_of(cf.file);

        cmd_close(&cf);
        if (foreign != NULL && foreign->driver != NULL)
            cmd_fail("'%s': looks like a %s image; only qcow2 images are checked, others by "
                     "'qemu-img check'",
                     c->path, foreign->name);
        else
            cmd_fail("'%s': not a qcow2 image; other formats have no checks", c->path);
        return EXIT_NO_CHECKS;
    }
    ret = check_image(cf.file, &options, &result, &err);
    cmd_close(&cf);
    hide_progress(c);
    if (ret < 0) {
        cmd_fail("%s", err.text);
        return ret == -ENOTSUP ? EXIT_NO_CHECKS : EXIT_NOT_CHECKED;
    }
    if (!c->json && !c->quiet)
        print_human(&result);
    if ((c->json ? print_json(c, &result) : cmd_flush_output()) < 0)
        return EXIT_NOT_CHECKED;
    return result.corruptions > 0 ? EXIT_CORRUPT : result.leaks > 0 ? EXIT_LEAKS : EXIT_CLEAN;
}

static int parse_repair(const char *text, enum check_repair *repair)
{
    if (strcmp(text, "leaks") == 0)
        *repair = CHECK_REPAIR_LEAKS;
    else if (strcmp(text, "all") == 0)
        *repair = CHECK_REPAIR_ALL;
    else
        return cmd_wrong_use("check", "--repair: '%s' is not leaks or all", text);
    return 0;
}

int cmd_check(int argc, char **argv)
{
    enum { OPTION_OUTPUT = 256, OPTION_LOCKING };
    static const struct option long_options[] = {
        {"repair", required_argument, NULL, 'r'},
        {"output", required_argument, NULL, OPTION_OUTPUT},
        {"format", required_argument, NULL, 'f'},
        {"quiet", no_argument, NULL, 'q'},
        {"force-share", no_argument, NULL, 'U'},
        {"locking", required_argument, NULL, OPTION_LOCKING},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct check_command c = {.access = CMD_READ, .locking = FILE_LOCKING_AUTO};
    int opt;

    opterr = 0;
    while ((opt = getopt_long(argc, argv, ":r:f:qUh", long_options, NULL)) != -1) {
        switch (opt) {
        case 'r':
            if (parse_repair(optarg, &c.repair) != 0)
                return 1;
            break;
        case OPTION_OUTPUT:
            if (!cmd_parse_output("check", optarg, &c.json))
                return 1;
            break;
        case OPTION_LOCKING:
            if (!cmd_parse_locking("check", optarg, &c.locking))
                return 1;
            break;
        case 'f':
            c.format = optarg;
            break;
        case 'q':
            c.quiet = true;
            break;
        case 'U':
            c.access = CMD_READ_SHARED;
            break;
        case 'h':
            cmd_check_print_help();
            return 0;
        default:
            return cmd_wrong_option("check", opt, argc, argv, long_options);
        }
    }
    c.path = cmd_one_image(argc, argv, "check");
    if (c.path == NULL)
        return 1;
    if (c.format != NULL && image_format_parse(c.format) != IMAGE_FORMAT_QCOW2) {
        cmd_fail("'%s': format '%s' has no checks; only qcow2 has", c.path, c.format);
        return EXIT_NO_CHECKS;
    }
    if (c.repair != CHECK_REPORT && c.access == CMD_READ_SHARED)
        return cmd_fail("check: --repair needs the image alone; leave --force-share out");
    if (c.repair != CHECK_REPORT)
        c.access = CMD_WRITE;
    return cmd_check_run(&c);
}
