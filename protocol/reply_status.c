// SPDX-License-Identifier: Apache-2.0
// reply_status.c: answers BLOCK_STATUS ("NBD_REPLY_TYPE_BLOCK_STATUS" and its _EXT) with a chunk of
// descriptors for each context that was asked for.
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "protocol/meta_context.h"
#include "protocol/reply.h"
#include "protocol/session_reply.h"
#include "protocol/wire.h"

// Most descriptors of one chunk. The protocol advises to stay below 2^20; 2^16 take at most
// 1 MiB, and a client that wants more asks again from the end of the answer.
#define STATUS_DESCRIPTORS_MAX (1u << 16)

// Longest 32-bit descriptor in bytes: a multiple of every minimum block size that the protocol
// allows (65 536), so that the client's next question is aligned, too.
#define STATUS_LENGTH_MAX (UINT32_MAX - 65535u)

// Returns the value of an extent in a context.
static uint32_t value_of(unsigned context, const struct session_status_extent *extent)
{
    return context == SESSION_CONTEXT_ALLOCATION_DEPTH ? extent->depth : extent->flags;
}

struct descriptor {
    uint64_t length;
    uint32_t value;
};

// Returns the run of extents of one value that begins at *next, and moves *next behind it. Empty
// extents are skipped.
static struct descriptor run_of_extents(unsigned context,
                                        const struct session_status_extent *extents, size_t count,
                                        size_t *next)
{
    struct descriptor run = {
        .length = extents[*next].length,
        .value = value_of(context, &extents[*next]),
    };
    for ((*next)++; *next < count; (*next)++) {
        const struct session_status_extent *extent = &extents[*next];
        if (extent->length > 0 && value_of(context, extent) != run.value)
            break;
        if (run.length > UINT64_MAX - extent->length)
            run.length = UINT64_MAX;
        else
            run.length += extent->length;
    }
    return run;
}

static size_t descriptor_size(const struct session *s)
{
    return s->mode == REPLY_EXTENDED ? sizeof(struct nbd_block_descriptor_ext)
                                     : sizeof(struct nbd_block_descriptor);
}

static void write_descriptor(const struct session *s, const struct descriptor *descriptor,
                             uint8_t *out)
{
    if (s->mode == REPLY_EXTENDED) {
        struct nbd_block_descriptor_ext wire = {
            .length = htobe64(descriptor->length),
            .flags = htobe64(descriptor->value),
        };
        memcpy(out, &wire, sizeof(wire));
    } else {
        struct nbd_block_descriptor wire = {
            .length = htobe32((uint32_t)descriptor->length),
            .flags = htobe32(descriptor->value),
        };
        memcpy(out, &wire, sizeof(wire));
    }
}

// Writes a context's descriptors at out, or only counts them when out is NULL. Returns their
// number.
static size_t write_descriptors(const struct session *s, const struct session_request *request,
                                unsigned context, const struct session_status_extent *extents,
                                size_t count, uint8_t *out)
{
    size_t max = (request->flags & NBD_CMD_FLAG_REQ_ONE) != 0 ? 1 : STATUS_DESCRIPTORS_MAX;
    uint64_t left = request->length;
    size_t written = 0;
    for (size_t next = 0; next < count && left > 0 && written < max;) {
        struct descriptor run = run_of_extents(context, extents, count, &next);
        if (run.length == 0)
            continue;
        if (run.length > left)
            run.length = left;
        // A descriptor that does not hold all of its run is the last one, because adjacent
        // descriptors must differ.
        bool cut = s->mode != REPLY_EXTENDED && run.length > STATUS_LENGTH_MAX;
        if (cut)
            run.length = STATUS_LENGTH_MAX;
        if (out != NULL)
            write_descriptor(s, &run, out + written * descriptor_size(s));
        written++;
        left -= run.length;
        if (cut)
            break;
    }
    return written;
}

// Returns the bytes of a chunk's payload before the descriptors.
static size_t fixed_size(const struct session *s)
{
    return s->mode == REPLY_EXTENDED ? sizeof(struct nbd_chunk_block_status_ext)
                                     : sizeof(struct nbd_chunk_block_status);
}

// Writes a chunk's header and the fixed part of its payload at out. Returns the end of what it
// wrote.
static uint8_t *write_fixed(const struct session *s, const struct session_request *request,
                            unsigned context, size_t descriptors, uint16_t flags, uint8_t *out)
{
    bool extended = s->mode == REPLY_EXTENDED;
    uint16_t type = extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS;
    // The compact payload consists of the first field only.
    struct nbd_chunk_block_status_ext status = {
        .context = htobe32(meta_context_id(context)),
        .count = htobe32((uint32_t)descriptors),
    };
    out = reply_chunk_header(s, request, flags, type,
                             fixed_size(s) + descriptors * descriptor_size(s), out);
    memcpy(out, &status, fixed_size(s));
    return out + fixed_size(s);
}

// Returns the context with the lowest bit in a set.
static unsigned first_of(unsigned contexts)
{
    return contexts & -contexts;
}

void session_reply_status(struct session *s, const struct session_request *request,
                          const struct session_status_extent *extents, size_t count)
{
    assert(request->type == NBD_CMD_BLOCK_STATUS && s->mode != REPLY_SIMPLE);
    assert(request->contexts != 0);
    size_t size = 0;
    for (unsigned left = request->contexts; left != 0; left &= ~first_of(left)) {
        size_t n = write_descriptors(s, request, first_of(left), extents, count, NULL);
        if (n == 0) {
            session_reply(s, request, EIO, "no status is known");
            return;
        }
        size += reply_chunk_header_size(s) + fixed_size(s) + n * descriptor_size(s);
    }
    uint8_t *out = output_carve(&s->output, size, 1);
    if (out == NULL)
        return;
    uint8_t *at = out;
    for (unsigned left = request->contexts; left != 0; left &= ~first_of(left)) {
        unsigned context = first_of(left);
        size_t n = write_descriptors(s, request, context, extents, count, NULL);
        uint16_t flags = left == context ? NBD_REPLY_FLAG_DONE : 0;
        at = write_fixed(s, request, context, n, flags, at);
        write_descriptors(s, request, context, extents, count, at);
        at += n * descriptor_size(s);
    }
    output_copied(&s->output, out, size);
}
