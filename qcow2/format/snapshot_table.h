// SPDX-License-Identifier: Apache-2.0
// snapshot_table.h: the internal snapshots of an image, read and validated. Format: qcow2
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

// icount of a snapshot that has none.
#define SNAPSHOT_ICOUNT_NONE UINT64_MAX

struct snapshot {
    uint64_t l1_offset; // host bytes
    uint32_t l1_size;   // entries
    // The L1 table is cluster-aligned, below 2^56 and at most 32 MiB. A snapshot without it can
    // neither be read nor counted; the others are sound all the same.
    bool l1_valid;
    const char *id;   // owned by the table; as in the image, not checked to be UTF-8
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
    uint64_t bytes; // that the table takes on disk, from header->snapshot_offset
    struct snapshot *snapshots;
    uint8_t *strings; // what id and name point into
};

// Reads the table that header names, blocking, within the limits of header.h: at most
// HEADER_SNAPSHOTS_MAX entries and HEADER_SNAPSHOT_TABLE_BYTES_MAX bytes, all inside the file.
// Returns 0, and the table is the caller's to free; or a negative errno with a message, and the
// table is empty.
int snapshot_table_read(struct file *file, const struct header *header,
                        struct snapshot_table *table, struct error *err);

// Frees what a table holds and leaves it empty. An empty (zeroed) one is fine.
void snapshot_table_free(struct snapshot_table *table);

#endif
