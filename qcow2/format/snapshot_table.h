// SPDX-License-Identifier: Apache-2.0
// snapshot_table.h: reads and validates the internal snapshots of an image. Format: qcow2
// specification, "Snapshots".
#ifndef LAZYCOW_QCOW2_FORMAT_SNAPSHOT_TABLE_H
#define LAZYCOW_QCOW2_FORMAT_SNAPSHOT_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/base/error.h"
#include "qcow2/base/file.h"
#include "qcow2/format/header.h"

// Longest extra data of one snapshot, in bytes: QEMU's limit; the specification defines 24.
#define SNAPSHOT_EXTRA_DATA_MAX 1024u

// Value of icount in a snapshot that has none.
#define SNAPSHOT_ICOUNT_NONE UINT64_MAX

struct snapshot {
    uint64_t l1_offset; // host bytes
    uint32_t l1_size;   // entries
    // The L1 table is cluster-aligned, below 2^56 and at most 32 MiB. A snapshot with an invalid
    // table can be neither read nor counted; the other snapshots are still sound.
    bool l1_valid;
    // Owned by the table. As in the image, not checked to be UTF-8.
    const char *id;
    const char *name; // likewise
    uint32_t seconds; // since 1970
    uint32_t nanoseconds;
    uint64_t vm_clock;      // nanoseconds
    uint64_t vm_state_size; // bytes, 0 = none
    uint64_t disk_size;     // guest bytes
    uint64_t icount;        // or SNAPSHOT_ICOUNT_NONE
};

struct snapshot_table {
    size_t count;
    // Bytes of the table on disk, from header->snapshot_offset.
    uint64_t bytes;
    struct snapshot *snapshots;
    uint8_t *strings; // memory of all id and name strings
};

// Reads the table that header names, blocking, within the limits of header.h: at most
// HEADER_SNAPSHOTS_MAX entries and HEADER_SNAPSHOT_TABLE_BYTES_MAX bytes, all inside the file.
// Returns 0 and a table that the caller frees, or a negative errno with a message and an empty
// table.
int snapshot_table_read(struct file *file, const struct header *header,
                        struct snapshot_table *table, struct error *err);

// Frees the members and leaves the table empty. table may be zeroed.
void snapshot_table_free(struct snapshot_table *table);

#endif
