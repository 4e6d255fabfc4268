// SPDX-License-Identifier: Apache-2.0
// main.c: dispatches to the subcommands.
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/cmd.h"
#include "server/limits.h"
#include "server/standard_files.h"

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"serve", cmd_serve, "serve images over NBD"},
    {"create", cmd_create, "create an image"},
    {"info", cmd_info, "tell about an image"},
    {"check", cmd_check, "check an image's consistency"},
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void main_print_help(FILE *to)
{
    fputs("Usage: lazycow COMMAND [OPTION...] ...\n"
          "An NBD server for qcow2 images.\n"
          "\n",
          to);
    for (size_t i = 0; i < COMMANDS; i++) {
        fprintf(to, "  lazycow %-8s %s\n", commands[i].name, commands[i].summary);
    }
    fputs("\n"
          "  -h, --help     print this and exit\n"
          "  -V, --version  print the version and exit\n"
          "\n"
          "'lazycow COMMAND --help' tells about a command.\n",
          to);
}

static int is_option(const char *argument, const char *letter, const char *name)
{
    return strcmp(argument, letter) == 0 || strcmp(argument, name) == 0;
}

static int print_version(void)
{
    printf("lazycow %s\n", PACKAGE_VERSION);
    return 0;
}

// Runs the command line. Returns the exit code.
static int main_run(int argc, char **argv)
{
    if (argc < 2) {
        main_print_help(stderr);
        return 1;
    }
    if (argc == 3 && strcmp(argv[1], "help") == 0) {
        // "help serve" means "serve --help", as with other programs.
        argv[1] = argv[2];
        argv[2] = "--help";
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            if (argc == 3 && is_option(argv[2], "-V", "--version")) {
                return print_version();
            }
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    if (is_option(argv[1], "-h", "--help") || strcmp(argv[1], "help") == 0) {
        main_print_help(stdout);
        return 0;
    }
    if (is_option(argv[1], "-V", "--version")) {
        return print_version();
    }
    return cmd_fail("unknown %s '%s'; see 'lazycow --help'",
                    argv[1][0] == '-' ? "option" : "command", argv[1]);
}

int main(int argc, char **argv)
{
    int result = standard_files_open();
    struct error err;
    int code;

    if (result < 0) {
        // Standard error may be the closed descriptor: then only the exit code reports the failure.
        return cmd_fail("cannot open /dev/null in place of a closed standard descriptor: %s",
                        strerror(-result));
    }
    // A reader that closes a pipe or a socket must not end a repair half way.
    signal(SIGPIPE, SIG_IGN);
    // The limit of a file's size (ulimit -f) is reported by the write, too.
    signal(SIGXFSZ, SIG_IGN);
    if (limits_raise(&err) < 0) {
        error_prefix(&err, "lazycow");
        error_append(&err, "\n");
        // Without stdio, which wants more stack than there may be.
        (void)!write(STDERR_FILENO, err.text, strlen(err.text));
        return 1;
    }
    code = main_run(argc, argv);
    return code == 0 && cmd_flush_output() < 0 ? 1 : code;
}
