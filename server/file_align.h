// SPDX-License-Identifier: Apache-2.0
// file_align.h: a file over another one that takes only aligned requests (O_DIRECT).
//
// Aligned requests pass unchanged. Others go through bounce buffers, a piece at a time; a write
// that covers only part of a block first reads that block. Such a write is ordered by arrival
// against every other change of the same blocks, so that it never restores bytes that another one
// has changed since.
//
// One difference to a file without alignment: a write that ends inside the last block of the file,
// or beyond the end, leaves a size that is a multiple of the alignment, with zeros up to there.
// That is harmless for qcow2, whose clusters end there or later.
#ifndef LAZYCOW_SERVER_FILE_ALIGN_H
#define LAZYCOW_SERVER_FILE_ALIGN_H

#include <stddef.h>

#include "qcow2/base/file.h"

// The largest alignments that are accepted, of offsets and of buffers; real ones are 512 and 4096.
#define FILE_ALIGN_MAX 65536u
#define FILE_ALIGN_MEMORY_MAX 4096u

// Wraps lower. alignment is that of offsets and lengths, memory_alignment that of buffers; both are
// powers of two. On success *out owns lower and closes it. On failure lower is still the caller's,
// and a negative errno is returned.
int file_align_new(struct file *lower, size_t alignment, size_t memory_alignment,
                   struct file **out);

#endif
