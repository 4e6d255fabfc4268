// SPDX-License-Identifier: Apache-2.0
// export_argument.h: the two forms in which the command line names an export and its image.
#ifndef LAZYCOW_SERVER_EXPORT_ARGUMENT_H
#define LAZYCOW_SERVER_EXPORT_ARGUMENT_H

#include "qcow2/base/error.h"

enum export_argument_kind {
    // [NAME=]IMAGE: the text before the first '=' is the name, unless it contains a slash.
    EXPORT_ARGUMENT_PLAIN,
    // --export NAME=IMAGE: the image is the text behind the last '=' that leaves an existing file,
    // so that names can contain slashes, and both can contain '='.
    EXPORT_ARGUMENT_OPTION,
};

struct export_argument {
    enum export_argument_kind kind;
    const char *text; // borrowed from the command line
};

// Splits the argument. default_name (or NULL) is the name of an image that has none of its own;
// without it the name is the file's, without folder and extension. *name is allocated, also on
// failure unless it is NULL; *path points into the argument. Returns 0, or a negative errno with a
// message.
int export_argument_split(const struct export_argument *argument, const char *default_name,
                          char **name, const char **path, struct error *err);

// Appends advice to the message about an image that does not exist, if the '=' in the argument may
// have been understood differently from how it was meant.
void export_argument_advise(const struct export_argument *argument, const char *path,
                            struct error *err);

#endif
