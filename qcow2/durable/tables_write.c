// SPDX-License-Identifier: Apache-2.0
#include "qcow2/durable/tables_write.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "qcow2/core/image_state.h"
#include "qcow2/durable/writeback.h"
#include "qcow2/format/l1.h"
#include "qcow2/mapping/cache.h"

static int copy_slices(struct image *image, struct writeback *wb)
{
    size_t bytes = image->geometry.piece_bytes;
    struct slice *slice;

    while ((slice = TAILQ_FIRST(&image->cache->dirty)) != NULL) {
        void *room = writeback_room(wb, bytes);

        if (!room)
            return -ENOMEM;
        memcpy(room, slice->entries, bytes);
        writeback_add(wb, &(struct writeback_piece){.kind = WRITEBACK_L2,
                                                    .offset = slice->offset,
                                                    .length = bytes,
                                                    .slice = slice});
        cache_write_begins(image->cache, slice);
    }
    return 0;
}

static int copy_l1(struct image *image, struct writeback *wb)
{
    struct l1 *l1 = &image->l1;

    for (uint64_t piece = 0; l1->dirty_count > 0; piece++) {
        assert(piece < l1_pieces(l1));
        if (!l1_piece_dirty(l1, piece))
            continue;
        void *room = writeback_room(wb, image->geometry.piece_bytes);

        if (!room)
            return -ENOMEM;
        size_t length = l1_encode_piece(l1, piece, room);
        writeback_add(wb, &(struct writeback_piece){.kind = WRITEBACK_L1,
                                                    .offset = image->header.l1_offset +
                                                              (piece << l1->piece_bits),
                                                    .length = length,
                                                    .page = piece});
        l1_mark_piece(l1, piece, false);
    }
    return 0;
}

int tables_copy(struct image *image, struct writeback *wb)
{
    int result = copy_slices(image, wb);

    return result == 0 ? copy_l1(image, wb) : result;
}

void tables_settle(struct image *image, struct writeback *wb, bool failed)
{
    for (size_t i = 0; i < wb->count; i++) {
        const struct writeback_piece *piece = &wb->pieces[i];

        assert(piece->kind == WRITEBACK_L2 || piece->kind == WRITEBACK_L1);
        if (piece->kind == WRITEBACK_L2)
            cache_write_ended(image->cache, piece->slice, failed);
        else if (failed)
            l1_mark_piece(&image->l1, piece->page, true);
    }
    writeback_clear(wb);
}
