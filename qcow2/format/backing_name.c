// SPDX-License-Identifier: Apache-2.0
#include "qcow2/format/backing_name.h"

#include <stdlib.h>
#include <string.h>

bool backing_name_is_local(const char *name)
{
    // A colon after the first slash is part of a path.
    return name[strcspn(name, ":/")] != ':';
}

char *backing_name_resolve(const char *image_path, const char *name)
{
    const char *slash = strrchr(image_path, '/');
    size_t folder = slash != NULL && name[0] != '/' ? (size_t)(slash - image_path) + 1 : 0;
    size_t length = strlen(name);
    char *path = malloc(folder + length + 1);

    if (path == NULL)
        return NULL;
    memcpy(path, image_path, folder);
    memcpy(path + folder, name, length + 1);
    return path;
}
