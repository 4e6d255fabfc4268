// SPDX-License-Identifier: Apache-2.0
// clean.h: clean points of an image while it is served: refcounts on disk, dirty bit off.
#ifndef LAZYCOW_QCOW2_DURABLE_CLEAN_H
#define LAZYCOW_QCOW2_DURABLE_CLEAN_H

#include <stdbool.h>

struct image;

// Returns true while writes since the last clean point have left refcounts to be written.
bool image_needs_clean(const struct image *image);

// Does work that can wait for a quiet moment, such as punching holes at freed clusters. Called
// about once a second while it returns true or ops change the image. Returns whether more is to be
// done.
bool image_tick(struct image *image);

// Writes refcounts and clears the dirty bit of a served image. done is called with 0, -EBUSY when
// ops were in flight, or another negative errno. One call at a time.
typedef void image_clean_done(void *context, int result);
void image_clean(struct image *image, image_clean_done *done, void *context);

#endif
