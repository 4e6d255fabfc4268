// SPDX-License-Identifier: Apache-2.0
#include "qcow2/format/backing_name.h"

#include <stdlib.h>
#include <string.h>

const char *backing_name_path(const char *name)
{
    // QEMU's protocol names of local files and devices.
    static const char *const prefixes[] = {"file:", "host_device:"};

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        size_t length = strlen(prefixes[i]);

        if (strncmp(name, prefixes[i], length) == 0)
            return name + length;
    }
    return name;
}

bool backing_name_is_local(const char *name)
{
    // A colon behind the first slash, or behind the prefix, is part of a path.
    return backing_name_path(name) != name || name[strcspn(name, ":/")] != ':';
}

char *backing_name_resolve(const char *image_name, const char *name)
{
    const char *image_path = backing_name_path(image_name);
    const char *backing_path = backing_name_path(name);
    const char *slash = strrchr(image_path, '/');
    size_t folder = slash != NULL && backing_path[0] != '/' ? (size_t)(slash - image_path) + 1 : 0;
    size_t length = strlen(backing_path);
    char *path = malloc(folder + length + 1);

    if (path == NULL)
        return NULL;
    memcpy(path, image_path, folder);
    memcpy(path + folder, backing_path, length + 1);
    return path;
}
