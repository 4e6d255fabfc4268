// SPDX-License-Identifier: Apache-2.0
// dump.h: describes the activity of an image in lines for a person: each request and the event that
// it waits for, the sync, and the background work.
#ifndef LAZYCOW_QCOW2_DUMP_H
#define LAZYCOW_QCOW2_DUMP_H

struct image;

// Most lines about requests in one dump; the remaining requests are counted. A dump must not hold
// the loop, and a person reads no more.
#define DUMP_REQUESTS_MAX 200

// Calls line for each line of the dump. text has no newline and is valid until line returns.
void image_dump(const struct image *image, void (*line)(void *context, const char *text),
                void *context);

#endif
