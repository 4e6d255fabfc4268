// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/image_log.h"

#include <stdarg.h>
#include <stdio.h>

#include "qcow2/base/error.h"
#include "qcow2/base/op.h"
#include "qcow2/core/image_state.h"

// Longest description of an op in a trace, in bytes.
#define TRACE_OP_MAX 300

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

void image_trace_op(const struct image *image, const struct op *op, const char *event)
{
    char text[TRACE_OP_MAX];
    char line[2 * TRACE_OP_MAX + ERROR_TEXT_MAX];

    op_describe(op, text, sizeof(text));
    snprintf(line, sizeof(line), "'%s': %p %s: %s", image->file->name, (const void *)op, event,
             text);
    image->host.trace(image->host.context, line);
}
