// SPDX-License-Identifier: Apache-2.0
// cmd_option.c: explains why getopt_long(3) refused an option.
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "server/cmd.h"

// Room for the names of the options that an abbreviation may stand for.
#define CANDIDATES_MAX 256

// Returns the long option whose value getopt_long left in optopt. NULL: optopt is an unknown
// letter.
static const struct option *option_of_value(const struct option *options, int value)
{
    for (; options->name != NULL; options++) {
        if (options->val == value) {
            return options;
        }
    }
    return NULL;
}

// Returns the word that getopt_long has just looked at. It advances optind only behind the last
// letter of a cluster.
static const char *refused_word(int argc, char **argv)
{
    const char *next = optind < argc ? argv[optind] : "";

    if (next[0] == '-' && next[1] != '-' && strchr(next + 1, optopt) != NULL) {
        return next;
    }
    return argv[optind - 1];
}

static int unknown_letter(const char *command, int argc, char **argv)
{
    const char *word = refused_word(argc, argv);

    if (optopt >= '0' && optopt <= '9') {
        return cmd_fail("%s: unknown option '%s', and no size is negative; see 'lazycow %s --help'",
                        command, word, command);
    }
    if (optopt <= ' ' || optopt > '~' || (word[1] == optopt && word[2] == '\0')) {
        return cmd_fail("%s: unknown option '%s'; see 'lazycow %s --help'", command, word, command);
    }
    return cmd_fail("%s: unknown option '-%c' in '%s'; see 'lazycow %s --help'", command, optopt,
                    word, command);
}

// Reports a name that fits no option of the table, or several.
static int cmd_option_unknown_name(const char *command, const char *word,
                                   const struct option *options)
{
    size_t length = strcspn(word, "=");
    char candidates[CANDIDATES_MAX] = "";
    unsigned count = 0;

    for (; options->name != NULL && length > 2; options++) {
        size_t used = strlen(candidates);

        if (strncmp(options->name, word + 2, length - 2) == 0) {
            snprintf(candidates + used, sizeof(candidates) - used, "%s--%s",
                     count > 0 ? " or " : "", options->name);
            count++;
        }
    }
    if (count > 1) {
        return cmd_fail("%s: '%.*s' is ambiguous: %s?", command, (int)length, word, candidates);
    }
    return cmd_fail("%s: unknown option '%.*s'; see 'lazycow %s --help'", command, (int)length,
                    word, command);
}

int cmd_wrong_option(const char *command, int answer, int argc, char **argv,
                     const struct option *options)
{
    const struct option *known = option_of_value(options, optopt);
    const char *word = argv[optind - 1];

    if (answer == ':') {
        return cmd_fail("%s: a value is missing after '%s'; see 'lazycow %s --help'", command, word,
                        command);
    }
    if (optopt == 0) {
        return cmd_option_unknown_name(command, word, options);
    }
    if (known == NULL) {
        return unknown_letter(command, argc, argv);
    }
    return cmd_fail("%s: option '--%s' takes no value; leave '%s' out", command, known->name,
                    word + strcspn(word, "="));
}
