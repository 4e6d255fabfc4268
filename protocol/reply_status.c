// SPDX-License-Identifier: Apache-2.0
// reply_status.c: answers to BLOCK_STATUS ("NBD_REPLY_TYPE_BLOCK_STATUS").
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "protocol/meta_context.h"
#include "protocol/reply.h"
#include "protocol/wire.h"

// Most descriptors of one chunk: the protocol's advice is to stay below 2^20; 2^16 of them are half
// a megabyte, and a client that wants more asks again from where the answer ends.
#define STATUS_DESCRIPTORS_MAX (1u << 16)

// Longest descriptor of 32 bits, in bytes: a multiple of every minimum block size that the protocol
// admits (65 536), so that the next question is aligned, too.
#define STATUS_LENGTH_MAX (UINT32_MAX - 65535u)

// The run of equal extents that begins at *next, moves *next behind it.
static struct session_status_extent run_of_extents(const struct session_status_extent *extents,
                                                   size_t count, size_t *next)
{
    struct session_status_extent run = extents[(*next)++];
    while (*next < count && (extents[*next].flags == run.flags || extents[*next].length == 0)) {
        if (run.length > UINT64_MAX - extents[*next].length)
            run.length = UINT64_MAX;
        else
            run.length += extents[*next].length;
        (*next)++;
    }
    return run;
}

// Writes the descriptors at out, or only counts them where out is NULL. Returns how many there are.
static size_t write_descriptors(const struct session_request *request,
                                const struct session_status_extent *extents, size_t count,
                                uint8_t *out)
{
    size_t max = (request->flags & NBD_CMD_FLAG_REQ_ONE) != 0 ? 1 : STATUS_DESCRIPTORS_MAX;
    uint64_t left = request->length;
    size_t written = 0;
    for (size_t next = 0; next < count && left > 0 && written < max;) {
        struct session_status_extent run = run_of_extents(extents, count, &next);
        if (run.length == 0)
            continue;
        if (run.length > left)
            run.length = left;
        // A descriptor that had to be cut must be the last one: equal neighbours stay merged.
        bool cut = run.length > STATUS_LENGTH_MAX;
        if (cut)
            run.length = STATUS_LENGTH_MAX;
        if (out != NULL) {
            struct nbd_block_descriptor descriptor = {
                .length = htobe32((uint32_t)run.length),
                .flags = htobe32(run.flags),
            };
            memcpy(out + written * sizeof(descriptor), &descriptor, sizeof(descriptor));
        }
        written++;
        left -= run.length;
        if (cut)
            break;
    }
    return written;
}

void session_reply_status(struct session *s, const struct session_request *request,
                          const struct session_status_extent *extents, size_t count)
{
    assert(request->type == NBD_CMD_BLOCK_STATUS && s->mode != REPLY_SIMPLE);
    size_t descriptors = write_descriptors(request, extents, count, NULL);
    if (descriptors == 0) {
        session_reply(s, request, EIO, "no status is known");
        return;
    }
    struct nbd_chunk_block_status status = {
        .context = htobe32(meta_context_id(SESSION_CONTEXT_BASE_ALLOCATION)),
    };
    size_t payload_length = sizeof(status) + descriptors * sizeof(struct nbd_block_descriptor);
    size_t size = reply_chunk_header_size(s) + payload_length;
    uint8_t *out = output_carve(&s->output, size, 1);
    if (out == NULL)
        return;
    uint8_t *at = reply_chunk_header(s, request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS,
                                     payload_length, out);
    memcpy(at, &status, sizeof(status));
    write_descriptors(request, extents, count, at + sizeof(status));
    output_copied(&s->output, out, size);
}
