// SPDX-License-Identifier: Apache-2.0
// serve_parse.c: parses the command line of `lazycow serve`, word by word.
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "server/cmd.h"
#include "server/serve_options.h"

// Most options in the table: more than a help text can explain.
#define SETTINGS_MAX 128
// Base of getopt_long's results, which are indices of settings, above the letters and its own
// results '?', ':' and 1.
#define VALUE_SETTING 1000
#define VALUE_HELP 'h'
#define VALUE_VERSION 'V'
#define VALUE_IMAGE 1

// Most bytes of a wrong value that a message repeats.
#define VALUE_SHOWN_MAX 200

struct getopt_tables {
    // Three more, for help, version and the end.
    struct option long_options[SETTINGS_MAX + 3];
    char short_options[2 * SETTINGS_MAX + 8];
};

static void make_getopt_tables(struct getopt_tables *tables)
{
    struct option *option = tables->long_options;
    char *letter = tables->short_options;

    // Images are reported at their position among the options.
    *letter++ = '-';
    // A missing value is told apart from an unknown option.
    *letter++ = ':';
    *letter++ = VALUE_HELP;
    *letter++ = VALUE_VERSION;
    for (int i = 0; serve_settings[i].name != NULL && i < SETTINGS_MAX; i++) {
        const struct serve_setting *setting = &serve_settings[i];
        int argument = setting->allowed != NULL ? required_argument : no_argument;

        *option++ = (struct option){setting->name, argument, NULL, VALUE_SETTING + i};
        if (setting->letter != 0) {
            *letter++ = setting->letter;
            if (argument == required_argument) {
                *letter++ = ':';
            }
        }
    }
    *letter = '\0';
    *option++ = (struct option){"help", no_argument, NULL, VALUE_HELP};
    *option++ = (struct option){"version", no_argument, NULL, VALUE_VERSION};
    *option = (struct option){0};
}

// Returns the setting that getopt_long's value stands for.
static const struct serve_setting *setting_of(int value)
{
    const struct serve_setting *setting = serve_settings;

    if (value >= VALUE_SETTING) {
        return &serve_settings[value - VALUE_SETTING];
    }
    while (setting->letter != value) {
        setting++;
    }
    return setting;
}

void serve_options_add_image(struct serve_options *options, enum export_argument_kind kind,
                             const char *text)
{
    if (options->image_count < EXPORTS_MAX) {
        options->images[options->image_count] = (struct export_argument){kind, text};
    }
    // Counts images beyond the room, too; serve_options_check() reports them.
    options->image_count++;
}

static enum serve_parse serve_parse_take(struct serve_options *options, int value)
{
    const struct serve_setting *setting;

    switch (value) {
    case VALUE_HELP:
        fputs(serve_help, stdout);
        return SERVE_PARSE_DONE;
    case VALUE_VERSION:
        printf("lazycow %s\n", PACKAGE_VERSION);
        return SERVE_PARSE_DONE;
    case VALUE_IMAGE:
        serve_options_add_image(options, EXPORT_ARGUMENT_PLAIN, optarg);
        return SERVE_PARSE_RUN;
    default:
        break;
    }
    setting = setting_of(value);
    if (!setting->set(options, optarg)) {
        cmd_fail("serve: --%s: '%.*s%s' is not %s", setting->name, VALUE_SHOWN_MAX, optarg,
                 strlen(optarg) > VALUE_SHOWN_MAX ? "..." : "", setting->allowed);
        return SERVE_PARSE_WRONG;
    }
    return SERVE_PARSE_RUN;
}

static void report_wrong_option(int answer, int argc, char **argv, const struct option *options)
{
    const char *word = argv[optind - 1];
    const char *advice = answer == '?' ? serve_elsewhere(optopt == 0 ? word : "", optopt) : NULL;

    if (advice == NULL) {
        cmd_wrong_option("serve", answer, argc, argv, options);
    } else if (optopt == 0) {
        cmd_fail("serve: no option '%.*s' as in qemu-nbd; instead: %s", (int)strcspn(word, "="),
                 word, advice);
    } else {
        cmd_fail("serve: no option '-%c' as in qemu-nbd; instead: %s", optopt, advice);
    }
}

enum serve_parse serve_options_parse(struct serve_options *options, int argc, char **argv)
{
    struct getopt_tables tables;
    int value;

    serve_options_init(options);
    make_getopt_tables(&tables);
    opterr = 0;
    while ((value = getopt_long(argc, argv, tables.short_options, tables.long_options, NULL)) !=
           -1) {
        enum serve_parse result;

        if (value == '?' || value == ':') {
            report_wrong_option(value, argc, argv, tables.long_options);
            return SERVE_PARSE_WRONG;
        }
        result = serve_parse_take(options, value);
        if (result != SERVE_PARSE_RUN) {
            return result;
        }
    }
    // All words behind "--" are images.
    for (; optind < argc; optind++) {
        serve_options_add_image(options, EXPORT_ARGUMENT_PLAIN, argv[optind]);
    }
    return serve_options_check(options) ? SERVE_PARSE_RUN : SERVE_PARSE_WRONG;
}
