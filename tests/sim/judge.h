// SPDX-License-Identifier: Apache-2.0
// judge.h: judges the consistency of an image's tables. Counts every reference anew, with none of
// the engine's code.
#ifndef LAZYCOW_TESTS_SIM_JUDGE_H
#define LAZYCOW_TESTS_SIM_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/reader.h"

struct judge_result {
    uint64_t corruptions;
    uint64_t leaks;      // clusters, also beyond the end of the file
    uint64_t first_leak; // offset of one
    // Faults that a check finds even where the dirty bit allows them.
    uint64_t leaks_in_file;
    uint64_t too_low; // refcounts
    // COPIED flags of the disk that contradict the refcount.
    uint64_t flags;
    // References to clusters beyond the end of the file.
    uint64_t beyond;
    uint64_t end; // one past the highest cluster that is referenced
    char text[READER_TEXT];
};

// Fails a state for faults that no refcount excuses: misaligned offsets, two references to a
// cluster one of which claims to be the only one, two references of the disk to one cluster, data
// in metadata. Without the dirty bit the refcounts must also cover the references, and nothing may
// lie beyond the end of the file. Leaks are only counted. strict: after a clean end the COPIED
// flags must be complete, too.
void judge_tables(const struct reader *reader, bool strict, struct judge_result *result);

// Judges a repair on its way from before to after: it may change a COPIED flag only when the
// refcount behind the flag is right. Fills corruptions and text.
void judge_flag_order(const struct reader *before, const struct reader *after,
                      struct judge_result *result);

#endif
