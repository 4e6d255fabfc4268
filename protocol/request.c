// SPDX-License-Identifier: Apache-2.0
// request.c: decodes and checks requests ("Request message", "Request types"). A request that
// passes is not checked again anywhere.
#include "protocol/request.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "protocol/cursor.h"
#include "protocol/meta_context.h"
#include "protocol/reply.h"
#include "protocol/session_reply.h"
#include "protocol/wire.h"

// Most bytes of a refused payload that are received and thrown away, so that the connection lives
// on. A request that announces more shows that the stream is out of step: eight times the largest
// payload is more than any client sends.
#define REQUEST_SKIP_MAX (8ull * SESSION_PAYLOAD_MAX)

// ---- Checks -------------------------------------------------------------------------------------

struct command {
    bool known;
    bool writes; // fails on a read-only export
    // The length is that of a payload, received or sent.
    bool data;
    bool ranged; // offset and length mean something
    // Transmission flags that offer the command.
    uint16_t needs;
    uint16_t flags;   // command flags that are valid, beside FUA
    int beyond_error; // for a range that does not end inside the export
};

// Indexed by NBD_CMD_*.
static const struct command commands[] = {
    [NBD_CMD_READ] = {.known = true,
                      .data = true,
                      .ranged = true,
                      .flags = NBD_CMD_FLAG_DF,
                      .beyond_error = EINVAL},
    [NBD_CMD_WRITE] =
        {.known = true, .writes = true, .data = true, .ranged = true, .beyond_error = ENOSPC},
    [NBD_CMD_FLUSH] = {.known = true, .needs = NBD_FLAG_SEND_FLUSH},
    [NBD_CMD_TRIM] = {.known = true,
                      .writes = true,
                      .ranged = true,
                      .needs = NBD_FLAG_SEND_TRIM,
                      .beyond_error = EINVAL},
    [NBD_CMD_CACHE] = {.known = true,
                       .ranged = true,
                       .needs = NBD_FLAG_SEND_CACHE,
                       .beyond_error = EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {.known = true,
                              .writes = true,
                              .ranged = true,
                              .needs = NBD_FLAG_SEND_WRITE_ZEROES,
                              .flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              .beyond_error = ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {.known = true,
                              .ranged = true,
                              .flags = NBD_CMD_FLAG_REQ_ONE,
                              .beyond_error = EINVAL},
};

// Command flags that are valid only where a transmission flag offers them.
static const struct {
    uint16_t command_flag;
    uint16_t transmission_flag;
} offered_flags[] = {
    {NBD_CMD_FLAG_FUA, NBD_FLAG_SEND_FUA},
    {NBD_CMD_FLAG_DF, NBD_FLAG_SEND_DF},
    {NBD_CMD_FLAG_FAST_ZERO, NBD_FLAG_SEND_FAST_ZERO},
};

static bool flags_valid(const struct session *s, const struct command *command, uint16_t flags)
{
    if (flags == 0)
        return true;
    if ((flags & ~(command->flags | NBD_CMD_FLAG_FUA)) != 0)
        return false;
    for (size_t i = 0; i < sizeof(offered_flags) / sizeof(offered_flags[0]); i++)
        if ((flags & offered_flags[i].command_flag) != 0 &&
            (s->flags & offered_flags[i].transmission_flag) == 0)
            return false;
    return true;
}

// Returns the largest payload of a request in bytes.
static uint64_t payload_max(const struct session *s)
{
    uint32_t max = s->chosen->block_max;
    return max > 0 && max < SESSION_PAYLOAD_MAX ? max : SESSION_PAYLOAD_MAX;
}

// Returns 0, or the errno of the answer with its *message.
static int check(const struct session *s, const struct session_request *request,
                 const char **message)
{
    static const struct command unknown;
    const struct command *command = request->type < sizeof(commands) / sizeof(commands[0])
                                        ? &commands[request->type]
                                        : &unknown;
    if (!command->known) {
        *message = "unknown command";
        return EINVAL;
    }
    if (command->writes && (s->flags & NBD_FLAG_READ_ONLY) != 0) {
        *message = "the export is read-only";
        return EPERM;
    }
    if ((command->needs & ~s->flags) != 0) {
        *message = "the export does not offer this command";
        return EINVAL;
    }
    if (!flags_valid(s, command, request->flags)) {
        *message = "a flag that does not go with this command";
        return EINVAL;
    }
    if (request->type == NBD_CMD_BLOCK_STATUS && request->contexts == 0) {
        *message = s->contexts == 0 ? "no metadata context was negotiated"
                                    : "not a list of metadata contexts that were negotiated";
        return EINVAL;
    }
    // "Request types" leave a length of zero open. A block status of nothing would need at least
    // one extent of at least one byte.
    if (request->type == NBD_CMD_BLOCK_STATUS && request->length == 0) {
        *message = "length is zero";
        return EINVAL;
    }
    if (command->ranged && (request->offset > s->chosen->size ||
                            request->length > s->chosen->size - request->offset)) {
        *message = "the range ends beyond the export";
        return command->beyond_error;
    }
    if (command->data && request->length > payload_max(s)) {
        *message = "longer than the largest block";
        return EINVAL;
    }
    return 0;
}

// Answers a request with an errno, after its payload has come.
static enum step request_refuse(struct session *s, const struct session_request *request,
                                uint64_t payload_length, int error, const char *message)
{
    if (payload_length == 0) {
        session_reply(s, request, error, message);
        return STEP_AGAIN;
    }
    if (payload_length > REQUEST_SKIP_MAX)
        return session_end(s, SESSION_BAD, "a payload far beyond the largest block");
    s->request = *request;
    s->error = error;
    s->refusal = message;
    s->skip = payload_length;
    s->phase = PHASE_PAYLOAD_SKIP;
    return STEP_AGAIN;
}

// ---- Decoding -----------------------------------------------------------------------------------

static bool decode_compact(const uint8_t *data, struct session_request *request)
{
    struct nbd_request wire;
    memcpy(&wire, data, sizeof(wire));
    *request = (struct session_request){
        .type = be16toh(wire.type),
        .flags = be16toh(wire.flags),
        .cookie = be64toh(wire.cookie),
        .offset = be64toh(wire.offset),
        .length = be32toh(wire.length),
    };
    return be32toh(wire.magic) == NBD_REQUEST_MAGIC;
}

static bool decode_extended(const uint8_t *data, struct session_request *request)
{
    struct nbd_extended_request wire;
    memcpy(&wire, data, sizeof(wire));
    *request = (struct session_request){
        .type = be16toh(wire.type),
        .flags = be16toh(wire.flags),
        .cookie = be64toh(wire.cookie),
        .offset = be64toh(wire.offset),
        .length = be64toh(wire.length),
        .echoed_offset = be64toh(wire.offset),
    };
    return be32toh(wire.magic) == NBD_EXTENDED_REQUEST_MAGIC;
}

// Returns true when the length of a BLOCK_STATUS payload fits a list of contexts.
static bool lists_contexts(const struct session *s, const struct session_request *request)
{
    return request->type == NBD_CMD_BLOCK_STATUS &&
           (s->flags & NBD_FLAG_BLOCK_STATUS_PAYLOAD) != 0 && request->length >= sizeof(uint64_t) &&
           request->length <= sizeof(uint64_t) + META_CONTEXT_COUNT * sizeof(uint32_t) &&
           request->length % sizeof(uint32_t) == 0;
}

// Reads the list of contexts ("NBD_CMD_BLOCK_STATUS" of the extension): the length of the range,
// then ids. Selects no context when an id is unknown or comes twice.
static void read_contexts(const struct session *s, struct cursor data,
                          struct session_request *request)
{
    uint32_t id;
    request->contexts = 0;
    (void)cursor_u64(&data, &request->length);
    while (cursor_u32(&data, &id)) {
        unsigned context = meta_context_of_id(id) & s->contexts & ~request->contexts;
        if (context == 0) {
            request->contexts = 0;
            return;
        }
        request->contexts |= context;
    }
}

// Takes the extended part of a header: sets *payload_length to the bytes of payload that still
// follow. Takes the list of contexts of a BLOCK_STATUS along and removes PAYLOAD_LEN from its
// flags; request_take() handles that flag of every other command.
static enum step take_extended(struct session *s, struct session_request *request,
                               uint64_t *payload_length)
{
    size_t header_size = sizeof(struct nbd_extended_request);
    *payload_length = 0;
    if ((request->flags & NBD_CMD_FLAG_PAYLOAD_LEN) == 0) {
        input_consume(&s->input, header_size);
        return STEP_EVENT;
    }
    if (request->length > payload_max(s))
        return session_end(s, SESSION_BAD, "a payload beyond the largest block");
    if (lists_contexts(s, request)) {
        size_t length = (size_t)request->length;
        if (input_length(&s->input) - header_size < length)
            return STEP_MORE;
        struct cursor data = {.at = input_data(&s->input) + header_size, .left = length};
        read_contexts(s, data, request);
        request->flags &= (uint16_t)~NBD_CMD_FLAG_PAYLOAD_LEN;
        input_consume(&s->input, header_size + length);
        return STEP_EVENT;
    }
    *payload_length = request->length;
    input_consume(&s->input, header_size);
    return STEP_EVENT;
}

// Takes the header from the input, once all of it has arrived.
static enum step take_header(struct session *s, struct session_request *request,
                             uint64_t *payload_length)
{
    bool extended = s->mode == REPLY_EXTENDED;
    size_t size = extended ? sizeof(struct nbd_extended_request) : sizeof(struct nbd_request);
    if (input_length(&s->input) < size)
        return STEP_MORE;
    const uint8_t *data = input_data(&s->input);
    if (!(extended ? decode_extended(data, request) : decode_compact(data, request)))
        return session_end(s, SESSION_BAD, "a request without its magic");
    if (request->type == NBD_CMD_DISC)
        return session_end(s, SESSION_DISCONNECT, "the client disconnected");
    if (request->type == NBD_CMD_BLOCK_STATUS)
        request->contexts = s->contexts;
    if (extended)
        return take_extended(s, request, payload_length);
    *payload_length = request->type == NBD_CMD_WRITE ? request->length : 0;
    input_consume(&s->input, size);
    return STEP_EVENT;
}

// ---- Taking a request ---------------------------------------------------------------------------

enum step request_take(struct session *s, struct session_request *request,
                       enum session_event *event)
{
    uint64_t payload_length;
    enum step step = take_header(s, request, &payload_length);
    if (step != STEP_EVENT)
        return step;
    if (s->mode == REPLY_EXTENDED && request->type == NBD_CMD_WRITE) {
        if ((request->flags & NBD_CMD_FLAG_PAYLOAD_LEN) == 0)
            return request_refuse(s, request, 0, EINVAL, "a write without a payload");
        request->flags &= (uint16_t)~NBD_CMD_FLAG_PAYLOAD_LEN;
    }
    const char *message = NULL;
    int error = check(s, request, &message);
    if (error != 0)
        return request_refuse(s, request, payload_length, error, message);
    if (request->type == NBD_CMD_FLUSH) {
        // These fields are reserved; some clients leave a value there.
        request->offset = 0;
        request->length = 0;
    } else if (request->length == 0) {
        // The protocol leaves a length of zero open. Like QEMU and nbdkit lazycow does nothing and
        // succeeds.
        session_reply(s, request, 0, NULL);
        return STEP_AGAIN;
    }
    if (payload_length > 0) {
        s->request = *request;
        s->phase = PHASE_PAYLOAD_WANTED;
        *event = SESSION_PAYLOAD;
    } else {
        *event = SESSION_REQUEST;
    }
    return STEP_EVENT;
}
