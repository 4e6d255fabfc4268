// SPDX-License-Identifier: Apache-2.0
#include "server/export_argument.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "protocol/session.h"
#include "qcow2/format/backing_name.h"

// Returns true if the text is well-formed UTF-8 ("Syntax of UTF-8 Byte Sequences" in RFC 3629).
static bool utf8_valid(const char *text)
{
    // For each length of a sequence: the lead byte's mask and value, the least code point.
    static const struct {
        unsigned char mask, lead;
        uint32_t least;
    } forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    const unsigned char *p = (const unsigned char *)text;

    while (*p != '\0') {
        uint32_t point;
        size_t more = 0; // continuation bytes

        while (more < 4 && (*p & forms[more].mask) != forms[more].lead) {
            more++;
        }
        if (more == 4) {
            return false;
        }
        point = *p & (unsigned char)~forms[more].mask;
        for (size_t i = 1; i <= more; i++) {
            if ((p[i] & 0xc0) != 0x80) {
                return false;
            }
            point = point << 6 | (p[i] & 0x3f);
        }
        if (point < forms[more].least || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) {
            return false;
        }
        p += more + 1;
    }
    return true;
}

// Returns the name for an image that was given without one: the last part of its path without the
// extension. NULL when there is no memory.
static char *name_from_path(const char *text)
{
    const char *path = backing_name_path(text);
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    const char *dot = strrchr(base, '.');

    // A leading dot begins a hidden file's name, not an extension.
    return dot != NULL && dot != base ? strndup(base, (size_t)(dot - base)) : strdup(base);
}

// Returns the '=' that ends the name in a plain argument, or NULL.
static const char *plain_separator(const char *text)
{
    const char *equals = strchr(text, '=');
    const char *slash = strchr(text, '/');

    return equals != NULL && (slash == NULL || equals < slash) ? equals : NULL;
}

// Returns false only if there is no file. A file that cannot be examined counts as existing:
// opening it gives the message that says why.
static bool file_exists(const char *name)
{
    const char *path = backing_name_path(name);
    struct stat st;

    return path[0] != '\0' &&
           (stat(path, &st) == 0 || (errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG));
}

// Returns the last '=' in front of the name of an existing file, or NULL.
static const char *option_separator(const char *text)
{
    for (const char *p = text + strlen(text); p > text; p--) {
        if (p[-1] == '=' && file_exists(p)) {
            return p - 1;
        }
    }
    return NULL;
}

// Returns the only '=' if a name precedes it; NULL otherwise. With a single '=' it is certain which
// file is missing, and --skip-broken can leave that image out.
static const char *only_separator(const char *text)
{
    const char *equals = strchr(text, '=');

    return equals != NULL && equals[1] != '\0' && strchr(equals + 1, '=') == NULL ? equals : NULL;
}

static int explain_no_separator(const char *text, struct error *err)
{
    const char *first = strchr(text, '=');

    if (first == NULL) {
        return error_set(err, EINVAL, "--export '%s': has no '='; write --export NAME=IMAGE", text);
    }
    if (first[1] == '\0') {
        return error_set(err, EINVAL, "--export '%s': names no image; write --export NAME=IMAGE",
                         text);
    }
    return error_set(err, ENOENT,
                     "--export '%s': there is no file '%s', nor one behind any of the other '='; "
                     "check the image's path",
                     text, first + 1);
}

static int check_name(const char *name, const char *path, struct error *err)
{
    // Protocol, "Conventions": strings are UTF-8 of at most 4096 bytes.
    if (strlen(name) > SESSION_STRING_MAX || !utf8_valid(name)) {
        return error_set(err, EINVAL,
                         "'%s': an export's name must be UTF-8 of at most %d bytes; give another "
                         "with NAME=IMAGE",
                         path, SESSION_STRING_MAX);
    }
    return 0;
}

int export_argument_split(const struct export_argument *argument, const char *default_name,
                          char **name, const char **path, struct error *err)
{
    const char *text = argument->text;
    bool option = argument->kind == EXPORT_ARGUMENT_OPTION;
    const char *equals = option ? option_separator(text) : plain_separator(text);

    *name = NULL;
    if (option && equals == NULL) {
        equals = only_separator(text);
    }
    *path = equals != NULL ? equals + 1 : text;
    if (option && equals == NULL) {
        return explain_no_separator(text, err);
    }
    if ((*path)[0] == '\0') {
        return error_set(err, EINVAL, "'%s' names no image; write NAME=IMAGE or IMAGE", text);
    }
    if (equals != NULL && default_name != NULL) {
        return error_set(err, EINVAL,
                         "'%s': the name is given twice; leave --export-name out, or write './%s' "
                         "for a file of that name",
                         text, text);
    }
    if (equals != NULL) {
        *name = strndup(text, (size_t)(equals - text));
    } else {
        *name = default_name != NULL ? strdup(default_name) : name_from_path(text);
    }
    if (*name == NULL) {
        return error_set(err, ENOMEM, "out of memory");
    }
    return check_name(*name, *path, err);
}

void export_argument_advise(const struct export_argument *argument, const char *path,
                            struct error *err)
{
    const char *text = argument->text;

    if (argument->kind == EXPORT_ARGUMENT_OPTION || strchr(text, '=') == NULL) {
        return;
    }
    if (path != text && file_exists(text)) {
        error_append(err, "; write './%s' for the file of that name", text);
    } else if (path == text && option_separator(text) != NULL) {
        error_append(err, "; a name with a slash is given with --export '%s'", text);
    }
}
