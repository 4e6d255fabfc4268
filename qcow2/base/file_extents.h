// SPDX-License-Identifier: Apache-2.0
// file_extents.h: where a file has data and holes, for ops that want to know. The host is asked
// (FILE_EXTENTS), and what it says is remembered (known_extents.h).
#ifndef LAZYCOW_QCOW2_BASE_FILE_EXTENTS_H
#define LAZYCOW_QCOW2_BASE_FILE_EXTENTS_H

#include <stdint.h>

#include "qcow2/base/known_extents.h"

struct file;
struct op;

// Shortest hole that is told from data once there were too many. A disk of 64 KiB clusters that was
// written at random has a hole in most of them; to tell them all would take longer than to read them.
#define FILE_EXTENTS_COARSE (1u << 20)
// Extents that the host is asked for at a time: each costs it a system call of about 1 us, waking the
// thread that makes them 20 us. Twice as many as the last time where that was not enough, and half as
// many where the next look-up was for another place.
#define FILE_EXTENTS_ASKED_MAX 128
#define FILE_EXTENTS_ASKED_MIN 2
// How often an op asks for one place that others change meanwhile, before it takes it for data.
#define FILE_EXTENTS_TRIES 4

// Kind of what is at offset of the file, in *length for how many bytes; *length is the most that is
// of interest. Returns 0, or OP_PARKED (plan again). What is not known after all is data.
int file_extents_get(struct op *op, struct file *file, uint64_t offset, uint64_t *length,
                     enum file_extent_kind *kind);

// Forgets all that is known, where others may write to the file as well (file->shared).
void file_extents_distrust(struct file *file);

#endif
