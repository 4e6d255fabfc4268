// SPDX-License-Identifier: Apache-2.0
// known_extents.h: where a file is known to have data and holes.
//
//   unknown ── asked ──> answer in flight ──> known ── written, zeroed, punched, cut ──> unknown
//
// A change counts from its submit until its done has run, because the host may carry it out at any
// time between. A range that changes while a question is in flight is not remembered, whatever the
// answer says of it. So a known hole reads as zeros at the moment of the look-up.
#ifndef LAZYCOW_QCOW2_BASE_KNOWN_EXTENTS_H
#define LAZYCOW_QCOW2_BASE_KNOWN_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Kind of a range of a file, as the host tells it. A hole reads as zeros; data may read as
// anything.
enum file_extent_kind { FILE_EXTENT_DATA, FILE_EXTENT_HOLE };

struct file_extent {
    uint64_t length; // bytes, > 0
    enum file_extent_kind kind;
};

// Most extents that are remembered of a file, 24 KiB of memory. A file with more forgets them all,
// and from then on asks the host for coarser extents (FILE_EXTENTS_COARSE).
#define KNOWN_EXTENTS_MAX 1024
// A change is widened to whole blocks of this size, because the host changes whole pages.
#define KNOWN_EXTENTS_BLOCK 4096u
// Every extent begins and ends on a sector, even where the end of the file does not.
#define KNOWN_EXTENTS_SECTOR 512u

struct known_extent {
    // Bytes of the file: [begin, end).
    uint64_t begin;
    uint64_t end;
    enum file_extent_kind kind;
};

struct known_extents {
    // In order; none overlaps or touches another one of its kind.
    struct known_extent extents[KNOWN_EXTENTS_MAX];
    size_t count;
    // The file has had more than KNOWN_EXTENTS_MAX extents.
    bool coarse;
    // The question in flight: its offset, and the range that changed since it was asked.
    bool asking;
    uint64_t asked;
    uint64_t valid_end;
};

// Tells the kind of the extent at offset and in *length how many bytes of it follow; the caller
// sets *length to the most that it can use. Returns false when the place is unknown.
bool known_extents_find(const struct known_extents *known, uint64_t offset, uint64_t *length,
                        enum file_extent_kind *kind);
// [begin, end) is about to change, or has changed.
void known_extents_changed(struct known_extents *known, uint64_t begin, uint64_t end);
// A question to the host about the extents from offset on begins.
void known_extents_ask(struct known_extents *known, uint64_t offset);
// The host has answered count extents, in order and without gaps; 0 when it could not tell.
void known_extents_answer(struct known_extents *known, const struct file_extent *answer,
                          size_t count);

#endif
