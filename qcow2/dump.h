// SPDX-License-Identifier: Apache-2.0
// dump.h: what an image is doing, as lines for a person: each request and what it waits for, the sync,
// and what goes on in the background.
#ifndef LAZYCOW_QCOW2_DUMP_H
#define LAZYCOW_QCOW2_DUMP_H

struct image;

// Lines about requests in one dump; the others are counted. A dump is for reading, and must not hold
// the loop.
#define DUMP_REQUESTS_MAX 200

// Calls line for each line of the dump; text has no newline and is good until line returns.
void image_dump(const struct image *image, void (*line)(void *context, const char *text),
                void *context);

#endif
