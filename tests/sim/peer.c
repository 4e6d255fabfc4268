// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/peer.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"
#include "tests/memcheck.h"

static const char *const context_names[PEER_CONTEXTS] = {"base:allocation",
                                                         "qemu:allocation-depth"};

// ---- Queues of bytes

static void append(struct peer_queue *q, const void *bytes, size_t length)
{
    if (length == 0)
        return;
    if (q->end + length > q->capacity && q->start > 0) {
        memmove(q->bytes, q->bytes + q->start, q->end - q->start);
        q->end -= q->start;
        q->start = 0;
    }
    if (q->end + length > q->capacity) {
        q->capacity = 2 * (q->end + length);
        q->bytes = realloc(q->bytes, q->capacity);
        if (!q->bytes)
            abort();
    }
    memcpy(q->bytes + q->end, bytes, length);
    q->end += length;
}

static size_t waiting(const struct peer_queue *q)
{
    return q->end - q->start;
}

void peer_init(struct peer *peer, const struct peer_wishes *wishes,
               const struct peer_listener *listener)
{
    *peer = (struct peer){.wishes = *wishes, .listener = listener};
}

void peer_free(struct peer *peer)
{
    free(peer->out.bytes);
    free(peer->in.bytes);
}

size_t peer_says(const struct peer *peer, const unsigned char **bytes)
{
    *bytes = peer->out.bytes + peer->out.start;
    return waiting(&peer->out);
}

void peer_said(struct peer *peer, size_t bytes)
{
    peer->out.start += bytes;
}

// ---- Negotiation

static void say_option(struct peer *peer, uint32_t option, const void *data, size_t length)
{
    struct nbd_option header = {.magic = htobe64(NBD_IHAVEOPT),
                                .option = htobe32(option),
                                .length = htobe32((uint32_t)length)};

    append(&peer->out, &header, sizeof(header));
    append(&peer->out, data, length);
}

// The empty name stands for the first export, and there is only one.
static void say_contexts(struct peer *peer)
{
    struct peer_queue data = {0};
    uint32_t word = 0;

    append(&data, &word, sizeof(word));
    word = htobe32(PEER_CONTEXTS);
    append(&data, &word, sizeof(word));
    for (int i = 0; i < PEER_CONTEXTS; i++) {
        word = htobe32((uint32_t)strlen(context_names[i]));
        append(&data, &word, sizeof(word));
        append(&data, context_names[i], strlen(context_names[i]));
    }
    say_option(peer, NBD_OPT_SET_META_CONTEXT, data.bytes, waiting(&data));
    free(data.bytes);
}

// Sends all options at once; the answers come in their order.
static bool take_greeting(struct peer *peer, const unsigned char *at, size_t length)
{
    const struct peer_wishes *w = &peer->wishes;
    struct nbd_greeting greeting;
    static const unsigned char go[6]; // no name, no information asked for
    uint32_t flags = NBD_FLAG_FIXED_NEWSTYLE | (w->no_zeroes ? NBD_FLAG_NO_ZEROES : 0);

    if (length < sizeof(greeting))
        return false;
    memcpy(&greeting, at, sizeof(greeting));
    peer->in.start += sizeof(greeting);
    if (be64toh(greeting.magic) != NBD_MAGIC || be64toh(greeting.option_magic) != NBD_IHAVEOPT)
        peer->complaint = "a greeting without its magic";
    flags = htobe32(flags);
    append(&peer->out, &flags, sizeof(flags));
    if (w->mode == PEER_STRUCTURED)
        say_option(peer, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    else if (w->mode == PEER_EXTENDED)
        say_option(peer, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    if (w->contexts)
        say_contexts(peer);
    if (w->export_name)
        say_option(peer, NBD_OPT_EXPORT_NAME, NULL, 0);
    else
        say_option(peer, NBD_OPT_GO, go, sizeof(go));
    peer->phase = w->export_name && w->mode == PEER_SIMPLE ? PEER_EXPORT_NAME : PEER_OPTIONS;
    return true;
}

static void take_info(struct peer *peer, const unsigned char *data, size_t length)
{
    struct nbd_info_export info;

    if (length < sizeof(info))
        return;
    memcpy(&info, data, sizeof(info));
    if (be16toh(info.type) != NBD_INFO_EXPORT)
        return;
    peer->size = be64toh(info.size);
    peer->flags = be16toh(info.flags);
}

static void take_context(struct peer *peer, const unsigned char *data, size_t length)
{
    uint32_t id;

    for (int i = 0; i < PEER_CONTEXTS; i++) {
        if (length != sizeof(id) + strlen(context_names[i]) ||
            memcmp(data + sizeof(id), context_names[i], length - sizeof(id)) != 0)
            continue;
        memcpy(&id, data, sizeof(id));
        peer->context_ids[i] = be32toh(id);
    }
}

static bool take_option_reply(struct peer *peer, const unsigned char *at, size_t length)
{
    struct nbd_option_reply header;

    if (length < sizeof(header))
        return false;
    memcpy(&header, at, sizeof(header));
    uint32_t option = be32toh(header.option), type = be32toh(header.type);
    uint32_t bytes = be32toh(header.length);
    if (length - sizeof(header) < bytes)
        return false;
    peer->in.start += sizeof(header) + bytes;
    at += sizeof(header);
    if (be64toh(header.magic) != NBD_OPTION_REPLY_MAGIC)
        peer->complaint = "an option reply without its magic";
    else if (type == NBD_REP_ERR_SHUTDOWN)
        peer->refused = true;
    else if (type & NBD_REP_ERROR_BIT)
        peer->complaint = "an option that was refused";
    else if (type == NBD_REP_INFO)
        take_info(peer, at, bytes);
    else if (type == NBD_REP_META_CONTEXT)
        take_context(peer, at, bytes);
    else if (type == NBD_REP_ACK && option == NBD_OPT_GO)
        peer->phase = PEER_TRANSMISSION;
    // The last option has been answered, except EXPORT_NAME, whose answer has no header.
    else if (type == NBD_REP_ACK && peer->wishes.export_name &&
             option ==
                 (peer->wishes.contexts ? NBD_OPT_SET_META_CONTEXT : NBD_OPT_STRUCTURED_REPLY))
        peer->phase = PEER_EXPORT_NAME;
    return true;
}

static bool take_export_name(struct peer *peer, const unsigned char *at, size_t length)
{
    struct nbd_export_name_reply reply;
    size_t bytes = sizeof(reply) + (peer->wishes.no_zeroes ? 0 : NBD_EXPORT_NAME_PADDING);

    if (length < bytes)
        return false;
    memcpy(&reply, at, sizeof(reply));
    peer->in.start += bytes;
    peer->size = be64toh(reply.size);
    peer->flags = be16toh(reply.flags);
    peer->phase = PEER_TRANSMISSION;
    return true;
}

// ---- Requests

void peer_request(struct peer *peer, uint16_t type, uint16_t flags, uint64_t cookie,
                  uint64_t offset, uint64_t length, const void *payload)
{
    if (peer->wishes.mode == PEER_EXTENDED) {
        struct nbd_extended_request request = {
            .magic = htobe32(NBD_EXTENDED_REQUEST_MAGIC),
            .flags = htobe16(flags | (type == NBD_CMD_WRITE ? NBD_CMD_FLAG_PAYLOAD_LEN : 0)),
            .type = htobe16(type),
            .cookie = htobe64(cookie),
            .offset = htobe64(offset),
            .length = htobe64(length)};
        append(&peer->out, &request, sizeof(request));
    } else {
        struct nbd_request request = {.magic = htobe32(NBD_REQUEST_MAGIC),
                                      .flags = htobe16(flags),
                                      .type = htobe16(type),
                                      .cookie = htobe64(cookie),
                                      .offset = htobe64(offset),
                                      .length = htobe32((uint32_t)length)};
        append(&peer->out, &request, sizeof(request));
    }
    if (type == NBD_CMD_WRITE)
        append(&peer->out, payload, length);
}

// ---- Replies

static bool take_simple(struct peer *peer, const unsigned char *at, size_t length)
{
    const struct peer_listener *l = peer->listener;
    struct nbd_simple_reply reply;

    if (length < sizeof(reply))
        return false;
    memcpy(&reply, at, sizeof(reply));
    uint64_t cookie = be64toh(reply.cookie);
    uint32_t error = be32toh(reply.error);
    uint64_t data = l->read_length(l->context, cookie);
    if (data > 0 && peer->wishes.mode != PEER_SIMPLE) {
        peer->complaint = "a simple reply to a READ where replies are structured";
        return false;
    }
    if (error != 0)
        data = 0;
    if (length - sizeof(reply) < data)
        return false;
    peer->in.start += sizeof(reply) + data;
    if (data > 0)
        l->data(l->context, cookie, UINT64_MAX, at + sizeof(reply), data);
    l->done(l->context, cookie, error);
    return true;
}

// A reply chunk of either form.
struct chunk {
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    const unsigned char *payload;
    uint64_t length; // of it
};

static uint64_t get64(const unsigned char *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return be64toh(value);
}

static uint32_t get32(const unsigned char *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return be32toh(value);
}

static void take_status(struct peer *peer, const struct chunk *chunk)
{
    const struct peer_listener *l = peer->listener;
    bool wide = chunk->type == NBD_REPLY_TYPE_BLOCK_STATUS_EXT;
    size_t fixed =
        wide ? sizeof(struct nbd_chunk_block_status_ext) : sizeof(struct nbd_chunk_block_status);
    size_t each =
        wide ? sizeof(struct nbd_block_descriptor_ext) : sizeof(struct nbd_block_descriptor);
    size_t count = chunk->length < fixed ? 0 : (chunk->length - fixed) / each;
    const unsigned char *at = chunk->payload + fixed;
    int which = 0;

    if (count == 0 || count > PEER_EXTENTS_MAX || chunk->length != fixed + count * each ||
        (wide && get32(chunk->payload + 4) != count) ||
        wide != (peer->wishes.mode == PEER_EXTENDED)) {
        peer->complaint = "a block status of no such length";
        return;
    }
    while (which < PEER_CONTEXTS && peer->context_ids[which] != get32(chunk->payload))
        which++;
    if (which == PEER_CONTEXTS) {
        peer->complaint = "a block status of a context that was not asked for";
        return;
    }
    for (size_t i = 0; i < count; i++, at += each)
        peer->extents[i] = wide ? (struct peer_extent){get64(at), get64(at + 8)}
                                : (struct peer_extent){get32(at), get32(at + 4)};
    l->status(l->context, chunk->cookie, (enum peer_context)which, peer->extents, count);
}

// Returns the error in the chunk, or 0.
static uint32_t take_chunk(struct peer *peer, const struct chunk *chunk)
{
    const struct peer_listener *l = peer->listener;

    switch (chunk->type) {
    case NBD_REPLY_TYPE_NONE:
        break;
    case NBD_REPLY_TYPE_OFFSET_DATA:
        if (chunk->length > sizeof(uint64_t))
            l->data(l->context, chunk->cookie, get64(chunk->payload),
                    chunk->payload + sizeof(uint64_t), chunk->length - sizeof(uint64_t));
        else
            peer->complaint = "a data chunk without data";
        break;
    case NBD_REPLY_TYPE_OFFSET_HOLE:
        if (chunk->length == sizeof(struct nbd_chunk_offset_hole))
            l->data(l->context, chunk->cookie, get64(chunk->payload), NULL,
                    get32(chunk->payload + 8));
        else
            peer->complaint = "a hole chunk of no such length";
        break;
    case NBD_REPLY_TYPE_BLOCK_STATUS:
    case NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
        take_status(peer, chunk);
        break;
    case NBD_REPLY_TYPE_ERROR:
        if (chunk->length >= sizeof(struct nbd_chunk_error) && get32(chunk->payload) != 0)
            return get32(chunk->payload);
        peer->complaint = "an error chunk without an error";
        break;
    default:
        peer->complaint = "a chunk of an unknown type";
        break;
    }
    return 0;
}

static bool take_structured(struct peer *peer, const unsigned char *at, size_t length)
{
    bool wide = peer->wishes.mode == PEER_EXTENDED;
    size_t header = wide ? sizeof(struct nbd_extended_reply) : sizeof(struct nbd_structured_reply);
    struct chunk chunk;

    if (length < header)
        return false;
    // Both forms begin alike and end with the length.
    chunk.flags = (uint16_t)(get32(at + 4) >> 16);
    chunk.type = (uint16_t)get32(at + 4);
    chunk.cookie = get64(at + 8);
    chunk.length = wide ? get64(at + header - 8) : get32(at + header - 4);
    chunk.payload = at + header;
    if (length - header < chunk.length)
        return false;
    uint32_t error = take_chunk(peer, &chunk);
    peer->in.start += header + chunk.length;
    if (error != 0 && !(chunk.flags & NBD_REPLY_FLAG_DONE))
        peer->complaint = "an error chunk that is not the last one";
    if (chunk.flags & NBD_REPLY_FLAG_DONE && !peer->complaint)
        peer->listener->done(peer->listener->context, chunk.cookie, error);
    return true;
}

static bool take_reply(struct peer *peer, const unsigned char *at, size_t length)
{
    if (length < sizeof(uint32_t))
        return false;
    switch (get32(at)) {
    case NBD_SIMPLE_REPLY_MAGIC:
        if (peer->wishes.mode != PEER_EXTENDED)
            return take_simple(peer, at, length);
        break;
    case NBD_STRUCTURED_REPLY_MAGIC:
        if (peer->wishes.mode == PEER_STRUCTURED)
            return take_structured(peer, at, length);
        break;
    case NBD_EXTENDED_REPLY_MAGIC:
        if (peer->wishes.mode == PEER_EXTENDED)
            return take_structured(peer, at, length);
        break;
    }
    peer->complaint = "a reply with a magic that does not belong here";
    return false;
}

void peer_hears(struct peer *peer, const void *bytes, size_t length)
{
    bool more = true;

    memcheck_leave(bytes, length);
    append(&peer->in, bytes, length);
    while (more && !peer->complaint) {
        const unsigned char *at = peer->in.bytes + peer->in.start;
        size_t left = waiting(&peer->in);

        if (peer->phase == PEER_GREETING)
            more = take_greeting(peer, at, left);
        else if (peer->phase == PEER_OPTIONS)
            more = take_option_reply(peer, at, left);
        else if (peer->phase == PEER_EXPORT_NAME)
            more = take_export_name(peer, at, left);
        else
            more = take_reply(peer, at, left);
    }
}
