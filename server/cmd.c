// SPDX-License-Identifier: Apache-2.0
#include "server/cmd.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qcow2/format/format.h"
#include "server/file_backend.h"
#include "server/file_in_use.h"
#include "server/log.h"

int cmd_fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "%slazycow: ", log_prefix(STDERR_FILENO, LOG_LEVEL_ERROR));
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return 1;
}

int cmd_wrong_use(const char *command, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "lazycow: %s: ", command);
    vfprintf(stderr, format, args);
    fprintf(stderr, "; see 'lazycow %s --help'\n", command);
    va_end(args);
    return 1;
}

int cmd_flush_output(void)
{
    // The stream remembers that an earlier write failed, but not its errno; EIO stands for it.
    int result = ferror(stdout) ? -EIO : 0;

    if (fflush(stdout) != 0)
        result = -errno;
    if (result < 0)
        cmd_fail("cannot write to standard output: %s", strerror(-result));
    // Drops the rest, which would fail again and be reported twice at exit.
    __fpurge(stdout);
    clearerr(stdout);
    return result;
}

int cmd_print_json(const json_t *json)
{
    // Dumped to memory first, because jansson's functions that print report neither the cause nor
    // the stage of a failure.
    char *text = json_dumps(json, JSON_INDENT(4));

    if (text == NULL) {
        cmd_fail("no memory for the output");
        return -ENOMEM;
    }
    puts(text);
    free(text);
    return cmd_flush_output();
}

// Returns 1, or the power of 1024 that the suffix stands for; 0 if there is no such suffix.
static uint64_t suffix_factor(const char *suffix)
{
    static const char letters[] = "bkmgtpe";

    if (suffix[0] == '\0')
        return 1;
    const char *found = strchr(letters, suffix[0] | 0x20);
    if (found == NULL || suffix[1] != '\0')
        return 0;
    return 1ull << (10 * (found - letters));
}

bool cmd_parse_size(const char *text, uint64_t *size)
{
    bool hexadecimal = text[0] == '0' && (text[1] | 0x20) == 'x';
    char *end;

    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    uint64_t whole = strtoull(text, &end, hexadecimal ? 16 : 10);
    if (errno != 0 || (hexadecimal && *end != '\0'))
        return false;

    double fraction = 0;
    if (*end == '.') {
        const char *digits = end + 1;
        double place = 0.1;
        for (; *digits >= '0' && *digits <= '9'; digits++, place /= 10)
            fraction += (*digits - '0') * place;
        end = (char *)(uintptr_t)digits;
    }
    uint64_t factor = suffix_factor(end);
    if (factor == 0 || (factor == 1 && fraction > 0))
        return false;
    uint64_t bytes;
    if (__builtin_mul_overflow(whole, factor, &bytes) ||
        __builtin_add_overflow(bytes, (uint64_t)(fraction * (double)factor + 0.5), &bytes) ||
        bytes > INT64_MAX)
        return false;
    *size = bytes;
    return true;
}

bool cmd_next_option(char **rest, char **name, char **value)
{
    char *from = *rest;
    char *to = *rest;

    if (*from == '\0')
        return false;
    *name = to;
    *value = NULL;
    for (; *from != '\0'; from++) {
        if (*from == ',') {
            if (from[1] != ',')
                break;
            from++;
        } else if (*from == '=' && *value == NULL) {
            *to++ = '\0';
            *value = to;
            continue;
        }
        *to++ = *from;
    }
    *rest = *from == ',' ? from + 1 : from;
    *to = '\0';
    return true;
}

bool cmd_parse_output(const char *command, const char *text, bool *json)
{
    *json = strcmp(text, "json") == 0;
    if (!*json && strcmp(text, "human") != 0) {
        cmd_wrong_use(command, "--output: '%s' is not human or json", text);
        return false;
    }
    return true;
}

bool cmd_parse_locking(const char *command, const char *text, enum file_locking *locking)
{
    if (file_locking_parse(text, locking))
        return true;
    cmd_wrong_use(command, "--locking: '%s' is not " FILE_LOCKING_VALUES, text);
    return false;
}

const char *cmd_one_image(int argc, char **argv, const char *command)
{
    if (argc - optind == 1)
        return argv[optind];
    cmd_wrong_use(command, "expected one IMAGE, not %d", argc - optind);
    return NULL;
}

json_t *cmd_json_text(const char *text)
{
    json_t *string = json_string(text);

    if (string != NULL)
        return string;
    char *ascii = strdup(text);
    for (char *c = ascii; c != NULL && *c != '\0'; c++) {
        if ((unsigned char)*c > '~')
            *c = '?';
    }
    string = json_string(ascii != NULL ? ascii : "?");
    free(ascii);
    return string;
}

static void warn(void *context, const char *line)
{
    (void)context;
    fprintf(stderr, "%slazycow: warning: %s\n", log_prefix(STDERR_FILENO, LOG_LEVEL_WARNING), line);
}

int cmd_open(struct cmd_file *cf, const char *path, enum cmd_access access,
             enum file_locking locking, struct error *err)
{
    const struct file_open_options options = {
        .read_only = access != CMD_WRITE,
        .force_share = access == CMD_READ_SHARED,
        .locking = locking,
        .warn = warn,
    };

    runq_init(&cf->runq);
    cf->file = NULL;
    cf->backend = backend_new(BACKEND_AUTO, &cf->runq, err);
    if (cf->backend == NULL)
        return -EIO;
    int ret = file_in_use_by_output(path, err);
    if (ret == 0)
        ret = backend_open_file(cf->backend, path, &options, &cf->file, err);
    if (ret < 0) {
        backend_free(cf->backend);
        cf->backend = NULL;
    }
    return ret;
}

void cmd_close(struct cmd_file *cf)
{
    file_close(cf->file);
    backend_free(cf->backend);
    cf->file = NULL;
    cf->backend = NULL;
}

bool cmd_is_qcow2(struct file *file)
{
    uint8_t magic[4];

    return file_read_blocking(file, magic, 0, sizeof(magic)) == 0 &&
           format_get32(magic) == FORMAT_MAGIC;
}
