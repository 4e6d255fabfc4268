// SPDX-License-Identifier: Apache-2.0
// check.h: checks and repairs the consistency of an image: its refcounts, COPIED flags, reserved
// bits and offsets. Format: qcow2 specification. Corruptions and leaks are told apart and counted
// as qemu-img does.
#ifndef LAZYCOW_QCOW2_OFFLINE_CHECK_H
#define LAZYCOW_QCOW2_OFFLINE_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"

enum check_repair {
    CHECK_REPORT,       // writes nothing
    CHECK_REPAIR_LEAKS, // clusters that no entry refers to
    CHECK_REPAIR_ALL,
};

struct check_options {
    enum check_repair repair;
    // Takes one line about a finding. May be NULL. Called at most CHECK_MESSAGES_MAX times.
    void (*message)(void *context, const char *line);
    // Tells the progress now and then. May be NULL.
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
};

// Most findings that are described. An image can have millions of errors, and nobody reads more.
#define CHECK_MESSAGES_MAX 1000

struct check_result {
    uint64_t corruptions; // that are in the image (after repair)
    uint64_t leaks;       // clusters
    uint64_t corruptions_fixed;
    uint64_t leaks_fixed;
    uint64_t image_end;      // bytes: the end of the last cluster in use
    uint64_t total_clusters; // of the guest disk
    uint64_t allocated_clusters;
    uint64_t fragmented_clusters;
    uint64_t compressed_clusters;
};

// Checks the image in file, blocking. Memory grows with the clusters in use, about 3 MiB for each
// TiB of 64 KiB clusters, and a little more where snapshots share them. Repair writes so that a
// power cut at any point leaves the image no worse than before: see check_repair.c. Returns 0 and
// fills *result, with or without findings; or a negative errno with a message when the check or a
// repair could not be done: -ENOTSUP for a feature, -EINVAL for a file that is not qcow2 or is too
// broken.
int check_image(struct file *file, const struct check_options *options, struct check_result *result,
                struct error *err);

#endif
