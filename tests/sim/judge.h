// SPDX-License-Identifier: Apache-2.0
// judge.h: whether the tables of an image agree with each other. Counts every reference anew, with
// none of the engine's code.
#ifndef LAZYCOW_TESTS_SIM_JUDGE_H
#define LAZYCOW_TESTS_SIM_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/reader.h"

struct judge_result {
    uint64_t corruptions;
    uint64_t leaks;      // clusters, also beyond the end of the file
    uint64_t first_leak; // offset of one
    // What a check finds, also where the dirty bit allows for it.
    uint64_t leaks_in_file;
    uint64_t too_low; // refcounts
    uint64_t flags;   // COPIED flags of the disk that do not agree with the refcount
    uint64_t beyond;  // references to what is beyond the end of the file
    uint64_t end;     // one past the highest cluster that is referenced
    char text[READER_TEXT];
};

// What is never allowed, whatever the refcounts say: offsets that are not aligned, two references
// to a cluster one of which says that it is the only one, references of the disk to one cluster
// twice, data in metadata. Where the dirty bit is not set the refcounts have to cover the
// references too, and nothing may lie beyond the end of the file. Leaks are only counted. strict:
// after a clean end the COPIED flags have to be there too.
void judge_tables(const struct reader *reader, bool strict, struct judge_result *result);

// A repair on its way from before to after: a COPIED flag is changed only when the refcount that it
// goes by is right. Says corruptions and text.
void judge_flag_order(const struct reader *before, const struct reader *after,
                      struct judge_result *result);

#endif
