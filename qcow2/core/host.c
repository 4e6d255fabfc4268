// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/host.h"

#include <string.h>

enum image_format image_format_parse(const char *name)
{
    if (strcmp(name, "qcow2") == 0)
        return IMAGE_FORMAT_QCOW2;
    // QEMU also accepts its drivers for plain files and devices as formats; they mean raw.
    if (strcmp(name, "raw") == 0 || strcmp(name, "file") == 0 || strcmp(name, "host_device") == 0)
        return IMAGE_FORMAT_RAW;
    return IMAGE_FORMAT_UNKNOWN;
}
