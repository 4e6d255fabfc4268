// SPDX-License-Identifier: Apache-2.0
// image_log.h: lines for the operator about one image.
#ifndef LAZYCOW_QCOW2_CORE_IMAGE_LOG_H
#define LAZYCOW_QCOW2_CORE_IMAGE_LOG_H

struct image;
struct op;

// Logs one line that begins with the file's name.
__attribute__((format(printf, 2, 3))) void image_log(struct image *image, const char *format, ...);

// Traces the op if the host takes traces. event is a word such as "start".
void image_trace_op(const struct image *image, const struct op *op, const char *event);

#endif
