// SPDX-License-Identifier: Apache-2.0
// clean.h: clean points of an image while it is served: refcounts on disk, dirty bit off.
#ifndef LAZYCOW_QCOW2_DURABLE_CLEAN_H
#define LAZYCOW_QCOW2_DURABLE_CLEAN_H

#include <stdbool.h>

struct image;

// True while writes since the last clean point leave refcounts to be written.
bool image_needs_clean(const struct image *image);

// To be called about once a second, while it returns true or ops that change the image come: what
// can wait for a quiet moment, such as punching holes where clusters were freed. Returns whether
// more is to be done.
bool image_tick(struct image *image);

// Writes refcounts and clears the dirty bit while serving, unless ops are in flight. done is called
// with 0, -EBUSY where the image was not idle, or an error. One at a time.
typedef void image_clean_done(void *context, int result);
void image_clean(struct image *image, image_clean_done *done, void *context);

#endif
