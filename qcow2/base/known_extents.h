// SPDX-License-Identifier: Apache-2.0
// known_extents.h: where a file is known to have data and holes.
//
//   unknown ── asked ──> answer in flight ──> known ── written, zeroed, punched, cut ──> unknown
//
// A change counts from when it is submitted until its done has run: the host may carry it out at
// any time between. A range that is changed meanwhile is not remembered, whatever the answer says
// of it, so that a hole that is known reads as zeros at the moment of asking.
#ifndef LAZYCOW_QCOW2_BASE_KNOWN_EXTENTS_H
#define LAZYCOW_QCOW2_BASE_KNOWN_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// What lies at an offset of a file, as far as the host knows. A hole reads as zeros, data as
// anything.
enum file_extent_kind { FILE_EXTENT_DATA, FILE_EXTENT_HOLE };

struct file_extent {
    uint64_t length; // bytes, > 0
    enum file_extent_kind kind;
};

// Extents that are remembered of a file: 24 KiB. Where there are more all are forgotten, and from
// then on the host is asked for coarser ones.
#define KNOWN_EXTENTS_MAX 1024
// A change is one of whole blocks, of this size at least, for a host with pages.
#define KNOWN_EXTENTS_BLOCK 4096u
// What is told begins and ends with sectors, also where the file's end does not.
#define KNOWN_EXTENTS_SECTOR 512u

struct known_extent {
    uint64_t begin; // bytes of the file: [begin, end)
    uint64_t end;
    enum file_extent_kind kind;
};

struct known_extents {
    struct known_extent extents[KNOWN_EXTENTS_MAX]; // in order, apart
    size_t count;
    bool coarse; // there were too many
    // The question in flight: from where on, and where the range was changed since.
    bool asking;
    uint64_t asked;
    uint64_t valid_end;
};

// Kind of what is at offset, and in *length for how many bytes, where that is known; at most as many
// as *length says.
bool known_extents_find(const struct known_extents *known, uint64_t offset, uint64_t *length,
                        enum file_extent_kind *kind);
// [begin, end) changes, or has changed.
void known_extents_changed(struct known_extents *known, uint64_t begin, uint64_t end);
// Somebody asks the host for what lies from offset on.
void known_extents_ask(struct known_extents *known, uint64_t offset);
// The host has answered so many extents, in order and without gaps; or none.
void known_extents_answer(struct known_extents *known, const struct file_extent *answer,
                          size_t count);

#endif
