// SPDX-License-Identifier: Apache-2.0
// image.h: opening, serving and closing an image.
#ifndef LAZYCOW_QCOW2_IMAGE_H
#define LAZYCOW_QCOW2_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/base/offload.h"
#include "qcow2/base/op.h"
#include "qcow2/core/host.h"
#include "qcow2/durable/clean.h"
#include "qcow2/request/request.h"

// Opens an image, blocking. On success the image owns file, also through image_close; on failure
// the caller keeps it. Opening changes nothing on disk. host is copied.
int image_open(struct image **out, struct file *file, const struct image_options *options,
               const struct image_host *host, struct error *err);

uint64_t image_size(const struct image *image); // guest bytes
// Bytes. For raw images the preferred block size.
uint64_t image_cluster_size(const struct image *image);
// The caller asked for it, or the image is corrupt.
bool image_read_only(const struct image *image);
const char *image_name(const struct image *image);

// Returns an upper bound of the guest bytes whose change was answered and is not durable yet.
uint64_t image_bytes_at_stake(const struct image *image);

// Finishes the image: makes everything durable, writes refcounts, clears the dirty bit and gives
// space that was reserved ahead back to the host. Blocking. No op may be in flight or start later.
// Returns 0 or the error that kept the image dirty (nothing durable is lost then), with a message
// that says what else is lost. Frees nothing.
int image_finish(struct image *image, struct error *err);

// Frees the image, its file, and its backing images. No op may be in flight. NULL is allowed.
void image_close(struct image *image);

#endif
