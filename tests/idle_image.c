// SPDX-License-Identifier: Apache-2.0
// idle_image.c: for engines that replace the real one and keep no state: a tick, an idle period and
// the end have nothing to do.
#include "qcow2/image.h"

bool image_tick(struct image *image)
{
    (void)image;
    return false;
}

bool image_needs_clean(const struct image *image)
{
    (void)image;
    return false;
}

void image_clean(struct image *image, image_clean_done *done, void *context)
{
    (void)image;
    done(context, 0);
}

int image_finish(struct image *image, struct error *err)
{
    (void)image;
    (void)err;
    return 0;
}

uint64_t image_bytes_at_stake(const struct image *image)
{
    (void)image;
    return 0;
}
