// SPDX-License-Identifier: Apache-2.0
// file_extents.h: tells ops where a file has data and holes. Asks the host (FILE_EXTENTS) and
// remembers its answers (known_extents.h).
#ifndef LAZYCOW_QCOW2_BASE_FILE_EXTENTS_H
#define LAZYCOW_QCOW2_BASE_FILE_EXTENTS_H

#include <stdint.h>

#include "qcow2/base/known_extents.h"

struct file;
struct op;

// Shortest hole in bytes that counts as a hole once a file has too many extents to remember. A disk
// of 64 KiB clusters that was written at random has a hole in most of them, and telling all of
// these holes would take longer than reading them.
#define FILE_EXTENTS_COARSE (1u << 20)
// Most and fewest extents that the host is asked for at a time. Each extent costs a system call of
// about 1 us, and waking the thread that makes the calls costs 20 us. The number doubles when the
// last answer was used up, and halves when the next look-up was for another place.
#define FILE_EXTENTS_ASKED_MAX 128
#define FILE_EXTENTS_ASKED_MIN 2
// How often an op asks about one place that others change meanwhile, before it takes the place for
// data.
#define FILE_EXTENTS_TRIES 4

// Tells the kind of the extent at offset of the file, and in *length how many bytes of it follow;
// the caller sets *length to the most that it can use. A range that stays unknown counts as data.
// Returns 0, or OP_PARKED (plan again).
int file_extents_get(struct op *op, struct file *file, uint64_t offset, uint64_t *length,
                     enum file_extent_kind *kind);

// Forgets everything known of a file that other programs may write to (file->shared).
void file_extents_distrust(struct file *file);

#endif
