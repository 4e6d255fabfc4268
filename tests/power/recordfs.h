// SPDX-License-Identifier: Apache-2.0
// recordfs.h: the log that recordfs writes and tests/power/recording.py reads. Records follow each
// other in the machine's byte order; data follows the record of a write.
#ifndef LAZYCOW_TESTS_POWER_RECORDFS_H
#define LAZYCOW_TESTS_POWER_RECORDFS_H

#include <stdint.h>
#include <sys/ioctl.h>

enum record_kind {
    RECORD_WRITE = 1,     // begins; offset, length, then the data
    RECORD_TRUNCATE = 2,  // begins; offset is the new size
    RECORD_FALLOCATE = 3, // begins; mode, offset, length
    RECORD_BARRIER = 4,   // fsync or fdatasync begins
    // End of the record with this id; mode is the errno, length the bytes that were written.
    RECORD_END = 5,
};

struct record {
    uint32_t kind; // enum record_kind
    uint32_t mode;
    uint64_t id;
    uint64_t inode; // which file
    uint64_t offset;
    uint64_t length;
};

_Static_assert(sizeof(struct record) == 40, "read by recording.py");

// A barrier like fdatasync, but the kernel lets changes of the file begin while it runs.
#define RECORDFS_BARRIER ((unsigned)_IO('L', 1))

#endif
