// SPDX-License-Identifier: Apache-2.0
// test_entry.c: entries, indices and the L1 table: the meaning of the numbers on disk.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/format/entry.h"
#include "qcow2/format/geometry.h"
#include "qcow2/format/l1.h"
#include "tests/unit/scripted_file.h"

static void entries_of_all_kinds(void **state)
{
    const uint64_t host = 0x50000, sector = 1ull << format_compressed_shift(16);
    const struct {
        uint64_t raw;
        unsigned version;
        enum entry_kind kind;
        bool copied;
        uint64_t host_offset, host_length;
    } rows[] = {
        {0, 3, ENTRY_UNALLOCATED, false, 0, 0},
        {FORMAT_COPIED, 3, ENTRY_UNALLOCATED, true, 0, 0},
        {host, 3, ENTRY_DATA, false, host, 0},
        {host | FORMAT_COPIED, 3, ENTRY_DATA, true, host, 0},
        {entry_data(host), 2, ENTRY_DATA, true, host, 0},
        {FORMAT_L2_ZERO, 3, ENTRY_ZERO, false, 0, 0},
        {entry_zero_allocated(host), 3, ENTRY_ZERO_ALLOCATED, true, host, 0},
        // Version 2 has no zero flag.
        {FORMAT_L2_ZERO, 2, ENTRY_INVALID, false, 0, 0},
        {host | FORMAT_L2_ZERO, 2, ENTRY_INVALID, false, host, 0},
        // Not aligned to a cluster.
        {host + 512, 3, ENTRY_INVALID, false, host + 512, 0},
        {(host + 512) | FORMAT_L2_ZERO, 3, ENTRY_INVALID, false, host + 512, 0},
        // Reserved bits are looked at by check only.
        {host | 0x3f00000000000000ull, 3, ENTRY_DATA, false, host, 0},
        {FORMAT_COMPRESSED | 2 * sector | (host + 100), 3, ENTRY_COMPRESSED, false, host + 100,
         3 * 512 - 100},
        {FORMAT_COMPRESSED | FORMAT_COPIED | host, 3, ENTRY_INVALID, false, host, 512},
        // In the header's cluster, and behind the end of the file.
        {FORMAT_COMPRESSED | 0xfff0, 3, ENTRY_INVALID, false, 0xfff0, 16},
        {FORMAT_COMPRESSED | 0x10000, 3, ENTRY_COMPRESSED, false, 0x10000, 512},
        {FORMAT_COMPRESSED | 0xfffff, 3, ENTRY_COMPRESSED, false, 0xfffff, 1},
        {FORMAT_COMPRESSED | 0x100000, 3, ENTRY_INVALID, false, 0x100000, 512},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct entry_context context = {
            .version = rows[i].version, .cluster_bits = 16, .file_bytes = 0x100000};
        struct entry entry = entry_decode(rows[i].raw, &context);

        assert_int_equal(entry.kind, rows[i].kind);
        assert_int_equal(entry.copied, rows[i].copied);
        assert_int_equal(entry.host_offset, rows[i].host_offset);
        assert_int_equal(entry.host_length, rows[i].host_length);
    }
}

static void indices_of_guest_offsets(void **state)
{
    (void)state;
    for (unsigned bits = HEADER_CLUSTER_BITS_MIN; bits <= HEADER_CLUSTER_BITS_MAX; bits++) {
        const struct header header = {.cluster_bits = bits, .refcount_order = 4};
        struct geometry g = geometry_from_header(&header);
        uint64_t span = geometry_l2_span(&g);

        assert_int_equal(span, (1ull << bits) * (1ull << bits) / 8);
        assert_int_equal(geometry_l1_index(&g, 5 * span + 7), 5);
        assert_int_equal(geometry_l1_index(&g, 5 * span - 1), 4);
        assert_int_equal(geometry_l2_index(&g, 5 * span - 1), (1ull << bits) / 8 - 1);
        assert_int_equal(geometry_l2_index(&g, 5 * span + (3ull << bits)), 3);
        assert_int_equal(geometry_clusters(&g, 0), 0);
        assert_int_equal(geometry_clusters(&g, 1), 1);
        assert_int_equal(geometry_clusters(&g, g.cluster_size), 1);
        assert_int_equal(geometry_clusters(&g, UINT64_MAX), (UINT64_MAX >> bits) + 1);
        assert_int_equal(geometry_cluster_start(&g, 3 * g.cluster_size + 5), 3 * g.cluster_size);
        assert_int_equal(1ull << g.block_bits, g.cluster_size / 2);
        assert_true(g.piece_bytes <= g.cluster_size && g.piece_bytes <= 4096);
    }
}

// 600 entries are a piece of 512 and one of 88.
static void pieces_of_the_l1_table(void **state)
{
    const struct header header = {.cluster_bits = 16, .l1_size = 600, .l1_offset = 65536};
    struct scripted_file *disk = scripted_file_new();
    struct geometry g = geometry_from_header(&header);
    unsigned char piece[4096];
    struct error err;
    struct l1 l1;

    (void)state;
    for (unsigned i = 0; i < 600; i++)
        format_put64(disk->bytes + 65536 + 8 * i, i + 1);
    disk->size = 131072;
    assert_int_equal(l1_read(&l1, &disk->file, &header, &g, &err), 0);
    assert_int_equal(l1.entries[599], 600);
    assert_int_equal(l1_pieces(&l1), 2);
    assert_int_equal(l1.dirty_count, 0);

    l1_set(&l1, 512, 77);
    l1_set(&l1, 513, 78);
    assert_true(l1_piece_dirty(&l1, 1));
    assert_false(l1_piece_dirty(&l1, 0));
    assert_int_equal(l1.dirty_count, 1);
    assert_int_equal(l1_encode_piece(&l1, 1, piece), 88 * 8);
    assert_int_equal(format_get64(piece), 77);
    assert_int_equal(format_get64(piece + 87 * 8), 600);
    assert_int_equal(l1_encode_piece(&l1, 0, piece), 4096);
    assert_int_equal(format_get64(piece + 511 * 8), 512);
    l1_mark_piece(&l1, 1, false);
    l1_mark_piece(&l1, 1, false);
    assert_int_equal(l1.dirty_count, 0);
    l1_free(&l1);

    disk->fail_kind = FILE_READ;
    disk->fail_length = 131072;
    disk->fail_error = -EIO;
    assert_int_equal(l1_read(&l1, &disk->file, &header, &g, &err), -EIO);
    assert_non_null(strstr(err.text, "cannot read the L1 table"));
    assert_null(l1.entries);
    // An image of no bytes has none, and nothing is read.
    const struct header empty = {.cluster_bits = 16};
    assert_int_equal(l1_read(&l1, &disk->file, &empty, &g, &err), 0);
    assert_int_equal(l1_pieces(&l1), 0);
    l1_free(&l1);
    scripted_file_free(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_of_all_kinds),
        cmocka_unit_test(indices_of_guest_offsets),
        cmocka_unit_test(pieces_of_the_l1_table),
    };

    return cmocka_run_group_tests_name("entry", tests, NULL, NULL);
}
