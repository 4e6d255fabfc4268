// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/image_log.h"

#include <stdarg.h>
#include <stdio.h>

#include "qcow2/base/error.h"
#include "qcow2/core/image_state.h"

void image_log(struct image *image, const char *format, ...)
{
    char text[ERROR_TEXT_MAX];
    char line[2 * ERROR_TEXT_MAX];
    va_list args;

    if (!image->host.log)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    snprintf(line, sizeof(line), "'%s': %s", image->file->name, text);
    image->host.log(image->host.context, line);
}
