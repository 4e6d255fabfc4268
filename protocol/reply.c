// SPDX-License-Identifier: Apache-2.0
// reply.c: simple replies and reply chunks ("Simple reply message", "Structured reply chunk
// message", "Extended reply chunk message"). Only reply_chunk_header() and session_reply() look at
// the session's reply mode.
#include "protocol/reply.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "protocol/session_reply.h"
#include "protocol/wire.h"

// Longest message of an error chunk in bytes. The protocol allows 4096; one line is enough.
#define REPLY_MESSAGE_MAX 255u

// ---- Errors -------------------------------------------------------------------------------------

static const struct {
    int host; // errno
    uint32_t wire;
} error_map[] = {
    {EPERM, NBD_EPERM},        {EACCES, NBD_EPERM},
    {EROFS, NBD_EPERM},        {EIO, NBD_EIO},
    {ENOMEM, NBD_ENOMEM},      {EINVAL, NBD_EINVAL},
    {ENOSPC, NBD_ENOSPC},      {EDQUOT, NBD_ENOSPC},
    {EFBIG, NBD_ENOSPC},       {EOVERFLOW, NBD_EOVERFLOW},
    {EOPNOTSUPP, NBD_ENOTSUP}, {ESHUTDOWN, NBD_ESHUTDOWN},
};
_Static_assert(ENOTSUP == EOPNOTSUPP, "one row for both");

static const struct {
    uint32_t wire;
    const char *text;
} error_texts[] = {
    {NBD_EPERM, "not permitted"},   {NBD_EIO, "input/output error"},
    {NBD_ENOMEM, "out of memory"},  {NBD_EINVAL, "invalid request"},
    {NBD_ENOSPC, "no space left"},  {NBD_EOVERFLOW, "too long"},
    {NBD_ENOTSUP, "not supported"}, {NBD_ESHUTDOWN, "the server is shutting down"},
};

uint32_t reply_wire_error(const struct session_request *request, int error)
{
    // For every other error of the host: this request failed.
    uint32_t wire = NBD_EIO;
    for (size_t i = 0; i < sizeof(error_map) / sizeof(error_map[0]); i++)
        if (error_map[i].host == error)
            wire = error_map[i].wire;
    // "NBD_CMD_WRITE_ZEROES": only a request with the flag FAST_ZERO may be answered with ENOTSUP.
    bool fast_zero =
        request->type == NBD_CMD_WRITE_ZEROES && (request->flags & NBD_CMD_FLAG_FAST_ZERO) != 0;
    if (wire == NBD_ENOTSUP && !fast_zero)
        return NBD_EINVAL;
    return wire;
}

static const char *error_text(uint32_t wire)
{
    for (size_t i = 0; i < sizeof(error_texts) / sizeof(error_texts[0]); i++)
        if (error_texts[i].wire == wire)
            return error_texts[i].text;
    return "";
}

// ---- Headers ------------------------------------------------------------------------------------

size_t reply_chunk_header_size(const struct session *s)
{
    assert(s->mode != REPLY_SIMPLE);
    return s->mode == REPLY_EXTENDED ? sizeof(struct nbd_extended_reply)
                                     : sizeof(struct nbd_structured_reply);
}

static void write_extended(const struct session_request *request, uint16_t flags, uint16_t type,
                           uint64_t length, uint8_t *out)
{
    struct nbd_extended_reply header = {
        .magic = htobe32(NBD_EXTENDED_REPLY_MAGIC),
        .flags = htobe16(flags),
        .type = htobe16(type),
        .cookie = htobe64(request->cookie),
        .offset = htobe64(request->echoed_offset),
        .length = htobe64(length),
    };
    memcpy(out, &header, sizeof(header));
}

static void write_structured(const struct session_request *request, uint16_t flags, uint16_t type,
                             uint64_t length, uint8_t *out)
{
    assert(length <= UINT32_MAX);
    struct nbd_structured_reply header = {
        .magic = htobe32(NBD_STRUCTURED_REPLY_MAGIC),
        .flags = htobe16(flags),
        .type = htobe16(type),
        .cookie = htobe64(request->cookie),
        .length = htobe32((uint32_t)length),
    };
    memcpy(out, &header, sizeof(header));
}

uint8_t *reply_chunk_header(const struct session *s, const struct session_request *request,
                            uint16_t flags, uint16_t type, uint64_t length, uint8_t *out)
{
    if (s->mode == REPLY_EXTENDED)
        write_extended(request, flags, type, length, out);
    else
        write_structured(request, flags, type, length, out);
    return out + reply_chunk_header_size(s);
}

static void write_simple(const struct session_request *request, uint32_t error, uint8_t *out)
{
    struct nbd_simple_reply header = {
        .magic = htobe32(NBD_SIMPLE_REPLY_MAGIC),
        .error = htobe32(error),
        .cookie = htobe64(request->cookie),
    };
    memcpy(out, &header, sizeof(header));
}

// ---- Replies without data -----------------------------------------------------------------------

static void reply_simple(struct session *s, const struct session_request *request, uint32_t error)
{
    uint8_t *out = output_carve(&s->output, sizeof(struct nbd_simple_reply), 1);
    if (out == NULL)
        return;
    write_simple(request, error, out);
    output_copied(&s->output, out, sizeof(struct nbd_simple_reply));
}

static void reply_none(struct session *s, const struct session_request *request)
{
    size_t size = reply_chunk_header_size(s);
    uint8_t *out = output_carve(&s->output, size, 1);
    if (out == NULL)
        return;
    reply_chunk_header(s, request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, 0, out);
    output_copied(&s->output, out, size);
}

static void reply_error_chunk(struct session *s, const struct session_request *request,
                              uint32_t error, const char *message)
{
    size_t message_length = strnlen(message, REPLY_MESSAGE_MAX);
    struct nbd_chunk_error payload = {
        .error = htobe32(error),
        .message_length = htobe16((uint16_t)message_length),
    };
    size_t payload_length = sizeof(payload) + message_length;
    size_t size = reply_chunk_header_size(s) + payload_length;
    uint8_t *out = output_carve(&s->output, size, 1);
    if (out == NULL)
        return;
    uint8_t *at = reply_chunk_header(s, request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR,
                                     payload_length, out);
    memcpy(at, &payload, sizeof(payload));
    memcpy(at + sizeof(payload), message, message_length);
    output_copied(&s->output, out, size);
}

void session_reply(struct session *s, const struct session_request *request, int error,
                   const char *message)
{
    assert(error >= 0);
    uint32_t wire = error == 0 ? 0 : reply_wire_error(request, error);
    if (s->mode == REPLY_SIMPLE)
        reply_simple(s, request, wire);
    else if (error != 0)
        reply_error_chunk(s, request, wire, message != NULL ? message : error_text(wire));
    else if (s->mode == REPLY_EXTENDED || request->type == NBD_CMD_READ)
        reply_none(s, request); // must not be answered with a simple reply
    else
        reply_simple(s, request, 0);
}

// ---- READ ---------------------------------------------------------------------------------------

bool session_read_holes(const struct session *s, const struct session_request *request)
{
    return s->mode != REPLY_SIMPLE && (request->flags & NBD_CMD_FLAG_DF) == 0;
}

// Queues the data of parts, which begin at bytes into the request. Neighbours in memory become one
// piece.
static void queue_data(struct session *s, const void *data, uint64_t at,
                       const struct session_read_part *parts, size_t count,
                       struct session_payload_ref *ref)
{
    const uint8_t *begin = NULL;
    size_t length = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *bytes = parts[i].data != NULL ? parts[i].data : (const uint8_t *)data + at;
        if (length > 0 && begin + length != bytes) {
            output_payload(&s->output, begin, length, ref);
            length = 0;
        }
        begin = length > 0 ? begin : bytes;
        length += (size_t)parts[i].length;
        at += parts[i].length;
    }
    output_payload(&s->output, begin, length, ref);
}

static void read_simple(struct session *s, const struct session_request *request, const void *data,
                        const struct session_read_part *parts, size_t count,
                        struct session_payload_ref *ref)
{
    uint8_t *out = output_carve(&s->output, sizeof(struct nbd_simple_reply), 1 + count);
    if (out == NULL) {
        output_orphan(&s->output, ref);
        return;
    }
    write_simple(request, 0, out);
    output_copied(&s->output, out, sizeof(struct nbd_simple_reply));
    queue_data(s, data, 0, parts, count, ref);
}

// Returns the run of parts of one kind that begins at *next, and moves *next behind it.
static struct session_read_part run_of_parts(const struct session_read_part *parts, size_t count,
                                             size_t *next)
{
    struct session_read_part run = parts[(*next)++];
    while (*next < count && parts[*next].hole == run.hole)
        run.length += parts[(*next)++].length;
    return run;
}

static size_t chunk_fixed_size(const struct session *s, bool hole)
{
    return reply_chunk_header_size(s) +
           (hole ? sizeof(struct nbd_chunk_offset_hole) : sizeof(struct nbd_chunk_offset_data));
}

// Writes the header and the fixed payload of a content chunk at out. Returns the end of what it
// wrote.
static uint8_t *write_content(const struct session *s, const struct session_request *request,
                              const struct session_read_part *run, uint64_t offset, uint16_t flags,
                              uint8_t *out)
{
    if (run->hole) {
        struct nbd_chunk_offset_hole hole = {
            .offset = htobe64(offset),
            .length = htobe32((uint32_t)run->length),
        };
        out = reply_chunk_header(s, request, flags, NBD_REPLY_TYPE_OFFSET_HOLE, sizeof(hole), out);
        memcpy(out, &hole, sizeof(hole));
        return out + sizeof(hole);
    }
    struct nbd_chunk_offset_data content = {.offset = htobe64(offset)};
    out = reply_chunk_header(s, request, flags, NBD_REPLY_TYPE_OFFSET_DATA,
                             sizeof(content) + run->length, out);
    memcpy(out, &content, sizeof(content));
    return out + sizeof(content);
}

static void read_chunks(struct session *s, const struct session_request *request, const void *data,
                        const struct session_read_part *parts, size_t count,
                        struct session_payload_ref *ref)
{
    size_t size = 0;
    size_t runs = 0;
    uint64_t length = 0;
    for (size_t next = 0; next < count; runs++) {
        struct session_read_part run = run_of_parts(parts, count, &next);
        assert(run.length > 0);
        size += chunk_fixed_size(s, run.hole);
        length += run.length;
    }
    assert(length == request->length);

    uint8_t *out = output_carve(&s->output, size, runs + count + 1);
    if (out == NULL) {
        output_orphan(&s->output, ref);
        return;
    }
    uint64_t done = 0;
    for (size_t next = 0; next < count;) {
        size_t first = next;
        struct session_read_part run = run_of_parts(parts, count, &next);
        // All data is there and nothing can fail any more, so the last content chunk may end the
        // reply.
        uint16_t flags = next == count ? NBD_REPLY_FLAG_DONE : 0;
        uint8_t *end = write_content(s, request, &run, request->offset + done, flags, out);
        output_copied(&s->output, out, (size_t)(end - out));
        if (!run.hole)
            queue_data(s, data, done, parts + first, next - first, ref);
        out = end;
        done += run.length;
    }
    if (ref->pieces == 0)
        output_payload(&s->output, NULL, 0, ref);
}

void session_reply_read(struct session *s, const struct session_request *request, const void *data,
                        const struct session_read_part *parts, size_t count,
                        struct session_payload_ref *ref)
{
    assert(request->type == NBD_CMD_READ && request->length > 0);
    struct session_read_part whole = {.length = request->length};
    if (count == 0) {
        parts = &whole;
        count = 1;
    }
    for (size_t i = 0; i < count; i++)
        assert(!parts[i].hole || session_read_holes(s, request));
    ref->pieces = 0;
    if (s->mode == REPLY_SIMPLE)
        read_simple(s, request, data, parts, count, ref);
    else
        read_chunks(s, request, data, parts, count, ref);
}
