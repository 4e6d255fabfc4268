// SPDX-License-Identifier: Apache-2.0
#include "qcow2/format/l1.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/base/bits.h"
#include "qcow2/format/format.h"

int l1_read(struct l1 *l1, struct file *file, const struct header *header, const struct geometry *g,
            struct error *err)
{
    size_t bytes = (size_t)header->l1_size * FORMAT_ENTRY_BYTES;

    *l1 = (struct l1){.size = header->l1_size, .piece_bits = g->piece_bits};
    l1->entries = malloc(bytes ? bytes : 1);
    l1->dirty = calloc(bits_words(l1_pieces(l1) + 1), sizeof(*l1->dirty));
    if (!l1->entries || !l1->dirty) {
        l1_free(l1);
        return error_set(err, ENOMEM, "'%s': no memory for the L1 table of %zu bytes", file->name,
                         bytes);
    }
    int result = bytes ? file_read_blocking(file, l1->entries, header->l1_offset, bytes) : 0;
    if (result < 0) {
        l1_free(l1);
        return error_set(err, -result, "'%s': cannot read the L1 table: %s", file->name,
                         strerror(-result));
    }
    for (uint64_t i = 0; i < l1->size; i++)
        l1->entries[i] = be64toh(l1->entries[i]);
    return 0;
}

void l1_free(struct l1 *l1)
{
    free(l1->entries);
    free(l1->dirty);
    *l1 = (struct l1){0};
}

uint64_t l1_pieces(const struct l1 *l1)
{
    return ((l1->size * FORMAT_ENTRY_BYTES) + (1ull << l1->piece_bits) - 1) >> l1->piece_bits;
}

bool l1_piece_dirty(const struct l1 *l1, uint64_t piece)
{
    return bits_get(l1->dirty, piece);
}

void l1_mark_piece(struct l1 *l1, uint64_t piece, bool dirty)
{
    if (l1_piece_dirty(l1, piece) == dirty)
        return;
    if (dirty) {
        bits_set(l1->dirty, piece);
        l1->dirty_count++;
    } else {
        bits_clear(l1->dirty, piece);
        l1->dirty_count--;
    }
}

void l1_set(struct l1 *l1, uint64_t index, uint64_t entry)
{
    l1->entries[index] = entry;
    l1_mark_piece(l1, index * FORMAT_ENTRY_BYTES >> l1->piece_bits, true);
}

size_t l1_encode_piece(const struct l1 *l1, uint64_t piece, void *buf)
{
    uint64_t per_piece = (1ull << l1->piece_bits) / FORMAT_ENTRY_BYTES;
    uint64_t first = piece * per_piece;
    uint64_t count = l1->size - first < per_piece ? l1->size - first : per_piece;

    for (uint64_t i = 0; i < count; i++)
        format_put64((char *)buf + i * FORMAT_ENTRY_BYTES, l1->entries[first + i]);
    return (size_t)(count * FORMAT_ENTRY_BYTES);
}
